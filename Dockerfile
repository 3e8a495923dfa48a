# Builds with the toolchain's image, runs on one that has a C library, certificates and nothing else. Where larder is built already, as
# config/release leaves it in dist/, that will do: `docker build --build-arg BINARY=released .`
ARG BINARY=build

FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin larder && mv target/release/larder /larder && mkdir /data

FROM scratch AS released
ARG TARGETARCH=amd64
COPY dist/larder-${TARGETARCH} /larder
COPY dist/data /data

FROM ${BINARY} AS binary

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=binary /larder /usr/bin/larder
COPY --from=binary --chown=65532:65532 /data /data
# Where it listens is for a file to say, never for the environment, which goes over it: who brings a file of their own gets the
# doors that stand in it, and no other.
COPY config/container.toml /etc/larder/larder.toml
# A folder below the volume: larder takes no directory that everyone may write to, as some volumes are. By environment, so that
# commands find it that are run beside it.
ENV LARDER_CACHE_DIR=/data/cache
# What it writes is below /data: the rest may be read-only (docker run --read-only).
VOLUME /data
EXPOSE 5000
USER 65532:65532
HEALTHCHECK --interval=30s --timeout=6s CMD ["/usr/bin/larder", "health"]
ENTRYPOINT ["/usr/bin/larder"]
CMD ["serve", "--config", "/etc/larder/larder.toml"]
