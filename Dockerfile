# Two stages: the toolchain builds one static binary, and the final image holds that binary alone.
# `docker build -t lockgate .`
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
COPY config config
# Static glibc: the final image has no libraries.
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN cargo build --release --locked --target x86_64-unknown-linux-gnu \
 && mkdir -p /out/var/lib/lockgate /out/run/lockgate /out/etc/lockgate /out/tmp \
 && cp target/x86_64-unknown-linux-gnu/release/lockgate /out/lockgate

FROM scratch
COPY --from=build /out/ /
# The Docker engine's socket is mounted by whoever runs it: -v /var/run/docker.sock:/var/run/docker.sock
EXPOSE 80 443
VOLUME ["/var/lib/lockgate"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/lockgate"]
CMD ["serve", "--config", "/etc/lockgate/lockgate.yaml"]
