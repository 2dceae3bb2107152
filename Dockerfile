# syntax=docker/dockerfile:1
# The one binary of daskade, in an image without shell or package manager.
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY src src
COPY runtime runtime
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin daskade && cp target/release/daskade /daskade

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /daskade /usr/local/bin/daskade
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/daskade"]
