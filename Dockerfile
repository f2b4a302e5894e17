# jaxvit with one kind of accelerator:
#
#   docker build --build-arg=ACCELERATOR=cpu|cuda13|tpu --tag=jaxvit:cpu .
#   docker run --rm --volume="$PWD/runs:/runs" jaxvit:cpu train --config=digits --workdir=/runs/digits
#
# The wheels of CUDA bring all libraries; with cuda13 the host needs NVIDIA's driver 580 or later and its container
# toolkit (docker run --gpus=all).
FROM python:3.11-slim

ARG ACCELERATOR=cpu
WORKDIR /opt/jaxvit
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY jaxvit jaxvit
COPY configs configs
COPY results results
# Neither jax[cpu] nor an extra of this name exists, since plain jax runs on CPUs.
RUN case "$ACCELERATOR" in \
      cpu) pip install --no-cache-dir . ;; \
      cuda13|tpu) pip install --no-cache-dir ".[$ACCELERATOR]" ;; \
      *) echo "ACCELERATOR=$ACCELERATOR: must be cpu, cuda13 or tpu" >&2; exit 2 ;; \
    esac

# Data sets go to a mounted folder, not into the container.
ENV TFDS_DATA_DIR=/data PYTHONUNBUFFERED=1
WORKDIR /work
ENTRYPOINT ["python", "-m", "jaxvit"]
