# larder on an image that has a C library, certificates and nothing else: built with the toolchain's image; or, where larder is built
# already, as config/release leaves it in dist/, by `docker build --target released .`

FROM gcr.io/distroless/cc-debian12:nonroot AS base
# Where it listens is for a file to say, never for the environment, which goes over it: who brings a file of their own gets the
# doors that stand in it, and no other.
COPY config/container.toml /etc/larder/larder.toml
# A folder below the volume: larder takes no directory that everyone may write to, as some volumes are. By environment, so that
# commands find it that are run beside it.
ENV LARDER_CACHE_DIR=/data/cache
EXPOSE 5000
USER 65532:65532
HEALTHCHECK --interval=30s --timeout=6s CMD ["/usr/bin/larder", "health"]
ENTRYPOINT ["/usr/bin/larder"]
CMD ["serve", "--config", "/etc/larder/larder.toml"]

FROM base AS released
ARG TARGETARCH=amd64
COPY dist/larder-${TARGETARCH} /usr/bin/larder
COPY --chown=65532:65532 dist/data /data
# What it writes is below /data: the rest may be read-only (docker run --read-only).
VOLUME /data

FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin larder && mv target/release/larder /larder && mkdir /data

FROM base
COPY --from=build /larder /usr/bin/larder
COPY --from=build --chown=65532:65532 /data /data
VOLUME /data
