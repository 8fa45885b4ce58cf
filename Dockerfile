# One image for every role, with `mock-vendors` beside `fetchgate` to try things against.

FROM rust:1.95-bookworm AS binaries
WORKDIR /src
COPY . .
# The caches are no part of the image; what is copied out of them is.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked --bins --package fetchgate --package mock-vendors \
    && mkdir /out \
    && cp target/dist/fetchgate target/dist/mock-vendors /out/

FROM debian:bookworm-slim
# Vendors, Redis and MongoDB over TLS are checked against the machine's certificates.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner=10001 --group=10001 /var/lib/fetchgate
COPY --from=binaries /out/ /usr/local/bin/
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
# Where `sqlite:data/fetchgate.db` lies: give it a volume. With MongoDB nothing is written at all.
WORKDIR /var/lib/fetchgate
ENV FETCHGATE_CONFIG=/etc/fetchgate/fetchgate.toml
EXPOSE 8000
HEALTHCHECK --interval=3s --timeout=5s --start-period=30s --retries=5 CMD ["fetchgate", "healthcheck"]
ENTRYPOINT ["fetchgate"]
CMD ["serve"]
