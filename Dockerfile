# syntax=docker/dockerfile:1
# The one binary of daskade, in an image without shell or package manager.
#
# RUST is any image with cargo and a C linker, BASE any image with glibc: both can come from a registry of yours.
ARG RUST=docker.io/library/rust:1-slim-bookworm
ARG BASE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST} AS build
ARG PROFILE=release
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY src src
COPY benches benches
COPY runtime runtime
RUN cargo build --locked --profile "${PROFILE}" --bin daskade \
    && install --strip target/$([ "${PROFILE}" = dev ] && echo debug || echo "${PROFILE}")/daskade /daskade

FROM ${BASE}
COPY --from=build /daskade /usr/local/bin/daskade
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/daskade"]
