# The artifact with everything that it needs: docker build -t unlocked .
#   docker run --rm -v "$PWD/out:/out" unlocked acid_figure_1 --config results=/out/results figures=/out/figures
#   docker run --rm unlocked test -m "not slow and not slurm"
# What stands after the name of the image goes to reproduce.py. For an NVIDIA GPU: --gpus all, and device=cuda.
FROM python:3.12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /unlocked
COPY requirements.lock pyproject.toml README.md reproduce.py ./
COPY src src
RUN python3 -c "import reproduce; reproduce.make_environment()"
COPY . .
ENTRYPOINT ["python3", "reproduce.py"]
