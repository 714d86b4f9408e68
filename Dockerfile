# syntax=docker/dockerfile:1

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /src
COPY . .
# The caches hold the registry and earlier builds; the binary is copied out of the cache into the layer.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin pgleash && \
    install -s -m 755 target/release/pgleash /pgleash

# The same Debian release as above, for its glibc: C runtime and CA certificates, no shell, no package
# manager, user 65532. glibc and not musl, for its allocator and for host names as libpq resolves them.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="pgleash" \
      org.opencontainers.image.description="A watchdog for Postgres connection pools" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/LICENSE /LICENSE
COPY --from=build /pgleash /pgleash
# Postgres clients, on loopback: whoever is to connect shares this container's network namespace.
EXPOSE 6432
# Metrics, health and the page. On loopback too, unless PGLEASH_ADMIN says otherwise.
EXPOSE 9632
# Draining takes up to drain_timeout (30 s): stop the container with a longer grace period.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["/pgleash", "healthcheck"]
ENTRYPOINT ["/pgleash"]
CMD ["run"]
