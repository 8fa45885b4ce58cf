# What a contributor does, and what CI does: the same.
.PHONY: run test failover servers check bench load edge referee compose-test

run: ## the whole world: API, worker, embedded store, mock vendors; nothing else needed
	cargo run --release --locked -- dev

test: ## every test; nothing has to be installed or started before
	scripts/with-servers cargo test --workspace --locked

failover: ## the tests with a Sentinel failover and a Redis Cluster, two minutes that `make test` leaves out
	scripts/with-servers cargo test --locked --test it -- --ignored scaled::failover

servers: ## what the tests run against, installed where it is missing; `make test` does it too
	scripts/with-servers true

check: ## what CI checks besides the tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --locked --no-deps --document-private-items

compose-test: ## compose.yaml for real, on a local Docker engine; not part of CI
	scripts/with-servers docker/compose-test

bench: ## what Fetchgate costs on this machine, as tables; ARGS=--write puts them into docs/, ARGS=--quick takes a minute
	scripts/with-servers cargo bench --profile dist --workspace --locked --bench throughput -- $(ARGS)

load: ## k6 against both backends: latency, and whether anything was lost or any limit broken; ARGS=--write puts it into docs/
	scripts/with-servers load/run $(ARGS)

edge: ## what hostile clients cost everybody else: memory, probes, and the p99 of others; five minutes, against target/release or target/debug
	load/edge

referee: ## real time: are limits kept at the vendor's side, whatever breaks? a quarter of an hour; half of that with ARGS=--quick
	scripts/with-servers cargo bench --locked --bench referee -- $(ARGS)
