"""What the vision tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unlocked.errors import DataError, SettingError


@pytest.fixture
def refused() -> Callable[..., None]:
    """Check that a call raises a `DataError` or `SettingError` of one line that contains all the parts."""

    def check(call: Callable[..., Any], *arguments: Any, parts: tuple[object, ...], **options: Any) -> None:
        with pytest.raises((DataError, SettingError)) as error:
            call(*arguments, **options)
        assert "\n" not in str(error.value)
        for part in parts:
            assert str(part) in str(error.value)

    return check
