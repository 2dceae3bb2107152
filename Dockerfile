# syntax=docker/dockerfile:1
# The one binary of daskade, static, in an image of nothing else but the certificates of public authorities. Never root; needs
# no writable root. The same sources, toolchain and RUST image give the same bytes:
#
# docker build --build-arg SOURCE_DATE_EPOCH=0 --output type=registry,rewrite-timestamp=true -t registry.example.com/daskade/operator .
#
# RUST is any image with cargo, a C linker, a static libc and ca-certificates: it can come from a registry of yours. If it has no
# cargo-auditable, that is installed: it writes into the program which crates it is made of, where scanners of images look for it.
ARG RUST=docker.io/library/rust:1-slim-bookworm

FROM ${RUST} AS build
ARG PROFILE=dist FEATURES=otlp
RUN cargo auditable --version 2>/dev/null || cargo install --quiet --locked cargo-auditable@0.7.7
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY crates crates
COPY src src
COPY benches benches
COPY fuzz fuzz
COPY runtime runtime
# Only the program itself is linked statically: build scripts and macros run on this machine.
RUN cargo auditable rustc --locked --profile "${PROFILE}" --features "${FEATURES}" --bin daskade -- -C target-feature=+crt-static \
    && mkdir -p /image/usr/local/bin /image/etc/ssl/certs \
    && install --strip target/$([ "${PROFILE}" = dev ] && echo debug || echo "${PROFILE}")/daskade /image/usr/local/bin/daskade \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/

FROM scratch
COPY --from=build /image /
# One heap that gives large pieces back. Otherwise what large objects take for a moment stays with the process.
ENV MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=131072 MALLOC_TRIM_THRESHOLD_=131072
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/daskade"]
