# syntax=docker/dockerfile:1
# For amd64 and arm64. Everything that runs while it is built runs on the builder's own processor: the binary for the other
# one is cross-compiled, not emulated.
#
#   docker buildx build --platform linux/amd64,linux/arm64 .

FROM --platform=$BUILDPLATFORM rust:1.95.0-slim-bookworm AS tools
# The list of crates in the binary, the bill of materials, and the licences.
RUN cargo install --locked --root /tools cargo-auditable@0.7.7 && \
    cargo install --locked --root /tools cargo-cyclonedx@0.5.9 && \
    cargo install --locked --root /tools cargo-about@0.9.3 --features cli

FROM --platform=$BUILDPLATFORM rust:1.95.0-slim-bookworm AS build
ARG BUILDARCH
ARG TARGETARCH
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# The names that the compiler and Debian have for the target; the linker if it is not the builder's own.
# hadolint ignore=DL3008
RUN case ${TARGETARCH} in \
        amd64) machine=x86_64; package=gcc-x86-64-linux-gnu; libc=libc6-dev-amd64-cross ;; \
        arm64) machine=aarch64; package=gcc-aarch64-linux-gnu; libc=libc6-dev-arm64-cross ;; \
        *) echo "not built for ${TARGETARCH}" >&2; exit 1 ;; \
    esac; \
    rustup target add "${machine}-unknown-linux-gnu"; \
    variable=CARGO_TARGET_${machine^^}_UNKNOWN_LINUX_GNU_LINKER; \
    { echo "export TARGET=${machine}-unknown-linux-gnu"; echo "export ${variable}=${machine}-linux-gnu-gcc"; } >/target.env; \
    if [[ ${TARGETARCH} != "${BUILDARCH}" ]]; then \
        apt-get update; \
        apt-get install --yes --no-install-recommends "${package}" "${libc}"; \
        rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=tools /tools/bin /usr/local/cargo/bin
WORKDIR /src
COPY . .
# The caches hold the registry and earlier builds; what is built is copied out of the cache into the layer.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=pgleash-target-${TARGETARCH},target=/src/target \
    source /target.env; \
    export CARGO_PROFILE_RELEASE_STRIP=symbols; \
    cargo auditable build --release --locked --bin pgleash --target "${TARGET}"; \
    install -D -m 755 "target/${TARGET}/release/pgleash" /out/pgleash; \
    packaging/bom /out/doc "${TARGET}"

# The same Debian release as above, for its glibc: C runtime and CA certificates, no shell, no package
# manager, user 65532. glibc and not musl, for its allocator and for host names as libpq resolves them.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="pgleash" \
      org.opencontainers.image.description="A watchdog for Postgres connection pools" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/LICENSE /LICENSE
# sbom.cdx.json and licences.txt. The binary has the list of its crates as well, for scanners (cargo auditable).
COPY --from=build /out/doc /usr/share/doc/pgleash
COPY --from=build /out/pgleash /pgleash
# Postgres clients, on loopback: whoever is to connect shares this container's network namespace.
EXPOSE 6432
# Metrics, health and the page. On loopback too, unless PGLEASH_ADMIN says otherwise.
EXPOSE 9632
# Draining takes up to drain_timeout (30 s): stop the container with a longer grace period.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["/pgleash", "healthcheck"]
ENTRYPOINT ["/pgleash"]
CMD ["run"]
