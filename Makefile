# What a contributor does, and what CI does: the same.
.PHONY: run test test-browser failover servers check fuzz fuzz-plain fuzz-api check-metrics check-manifests clients deny sbom release bench load edge bulk million pages webhooks storm referee compose-test

run: ## the whole world: API, worker, embedded store, mock vendors; nothing else needed
	cargo run --release --locked -- dev

test: ## every test; nothing has to be installed or started before
	scripts/with-servers cargo test --workspace --locked

test-browser: ## the dashboard in a real browser; installs Chromium where it is missing, needs Node.js 20
	scripts/with-servers scripts/test-browser $(ARGS)

failover: ## the tests with a Sentinel failover and a Redis Cluster, two minutes that `make test` leaves out
	scripts/with-servers cargo test --locked --test it -- --ignored scaled::failover

servers: ## what the tests run against, installed where it is missing; `make test` does it too
	scripts/with-servers true

check: ## what CI checks besides the tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --locked --no-deps --document-private-items

fuzz: ## LLVM's fuzzer on TARGET=name for SECS=60; installs cargo-fuzz, needs a nightly compiler
	command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	cp Cargo.lock fuzz/coverage/
	FUZZ_TARGET=$(or $(TARGET),submit) cargo +nightly fuzz run --fuzz-dir fuzz/coverage any fuzz/corpus/$(or $(TARGET),submit) -- -max_total_time=$(or $(SECS),60)

fuzz-plain: ## changes the corpus at random, on any compiler: TARGET=name or all, RUNS=100000, SEED=1
	cargo run --release --locked -p fetchgate-fuzz -- $(or $(TARGET),all) $(or $(RUNS),100000) $(SEED)

fuzz-api: ## the API of a live server, fuzzed from its OpenAPI file by schemathesis; two minutes
	scripts/fuzz-api

check-metrics: ## alert rules, their tests, the Grafana dashboard and /metrics, with promtool; installs it
	scripts/check-metrics

check-manifests: ## the Kubernetes manifests against the schemas of Kubernetes, and the systemd unit
	scripts/check-manifests

clients: ## clients generated from the OpenAPI file without warnings, and all of examples/ run; needs Python 3.11 and Node.js 20
	scripts/clients

deny: ## licences, sources, bans and, where they can be reached, advisories; installs cargo-deny. `make test` checks licences and sources too
	command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny --workspace --locked check bans licenses sources $(ADVISORIES)

sbom: ## what is built in, as CycloneDX 1.5, into target/fetchgate.cdx.json
	scripts/sbom > target/fetchgate.cdx.json

release: ## the archive, checksums, SBOM and image of a release; publishes nothing
	scripts/release $(ARGS)

compose-test: ## compose.yaml for real, on a local Docker engine; not part of CI
	scripts/with-servers docker/compose-test

bench: ## what Fetchgate costs on this machine, as tables; ARGS=--write puts them into docs/, ARGS=--quick takes a minute
	scripts/with-servers cargo bench --profile dist --workspace --locked --bench throughput -- $(ARGS)

load: ## k6 against both backends: latency, and whether anything was lost or any limit broken; ARGS=--write puts it into docs/
	scripts/with-servers load/run $(ARGS)

edge: ## what hostile clients cost everybody else: memory, probes, and the p99 of others; five minutes, against target/release or target/debug
	load/edge

bulk: ## 100,000 failed jobs replayed by a filter: the p99 of others' submits meanwhile, and that each is replayed once; two minutes, against target/release or target/debug
	load/bulk $(ARGS)

million: ## what GET /stats and /failures cost with a million ended jobs in the embedded store; two minutes, against target/release or target/debug
	load/million $(SHARE)

pages: ## what a hundred open pages of the dashboard cost a busy embedded service; a minute, against target/release or target/debug
	load/pages $(ARGS)

webhooks: ## result webhooks with real processes: kills, silent receivers, what they cost, names that lie; ARGS=once, silent, cost or names
	scripts/with-servers load/webhooks $(ARGS)

storm: ## webhooks, bulk changes, events and keys at once on a scaled service, while each of its processes is killed and Redis loses what it had; three minutes, against target/release or target/debug
	scripts/with-servers load/storm

referee: ## real time: are limits kept at the vendor's side, whatever breaks? a quarter of an hour; half of that with ARGS=--quick
	scripts/with-servers cargo bench --locked --bench referee -- $(ARGS)
