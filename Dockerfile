# docker build -t pc-ewa .                              on a CPU
# docker build -t pc-ewa:cuda --build-arg TORCH=cu130 . on NVIDIA GPUs
# docker run --rm -v "$PWD/runs:/home/pc-ewa/runs" pc-ewa train quickstart     (with --gpus all for the second)
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
# The builds of torch to choose from are cpu and those of CUDA, such as cu130; the extras are those of pyproject.toml.
ARG TORCH=cpu
ARG EXTRAS=compare
COPY requirements.txt /wheels/
COPY --from=wheel /wheels /wheels
# Triton compiles a launcher for each kernel, with the C compiler of the system.
RUN if [ "$TORCH" != cpu ]; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/$TORCH" \
      "$(grep -o '^torch==[0-9.]*' /wheels/requirements.txt)" \
    && pip install --no-cache-dir "$(echo /wheels/*.whl)[$EXTRAS]" && rm -r /wheels
RUN useradd --create-home pc-ewa
USER pc-ewa
WORKDIR /home/pc-ewa
RUN mkdir runs && pc-ewa info
ENTRYPOINT ["pc-ewa"]
CMD ["--help"]
