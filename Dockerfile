# Builds with the toolchain's image, runs on one that has a C library, certificates and nothing else.
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin larder && mkdir /data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/larder /usr/bin/larder
COPY --from=build --chown=65532:65532 /data /data
# A folder below the volume: larder takes no directory that everyone may write to, as some volumes are.
ENV LARDER_SERVER_LISTEN=0.0.0.0:5000 LARDER_CACHE_DIR=/data/cache
VOLUME /data
EXPOSE 5000
USER 65532:65532
HEALTHCHECK --interval=30s --timeout=6s CMD ["/usr/bin/larder", "health"]
ENTRYPOINT ["/usr/bin/larder"]
CMD ["serve"]
