"""What the artifact's own code costs, each as a ratio to a peer in the same run: `python benchmarks/ratios.py NAME`.

NAME: gossip, processes or forward_gradient; also `unlocked bench NAME`. The scripts of these names measure more.
"""

from __future__ import annotations

import argparse
import importlib
import json

import pages

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["gossip", "processes", "forward_gradient"])
    parser.add_argument("--turns", type=int, default=7, help="timings of every contestant (default: 7)")
    parser.add_argument("--width", type=float, default=1.0, help="of forward_gradient's net (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    module = importlib.import_module(options.name)
    numbers = module.ratios(pages.Options(options.turns, width=options.width))
    for row in [] if options.json else pages.meant(numbers, module.MEANINGS):
        print(f"{row['measure']:<32} {row['value']:>8.3f}  {row['meaning']}")
    if options.json:
        print(json.dumps(numbers, indent=1))
