# What a contributor does, and what CI does: the same.
.PHONY: run test check bench

run: ## the whole world: API, worker, embedded store, mock vendors; nothing else needed
	cargo run --release --locked -- dev

test: ## every test; nothing has to be installed or started before
	cargo test --workspace --locked

check: ## what CI checks besides the tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --locked --no-deps --document-private-items

bench: ## our own throughput against the mock vendors, on this machine
	cargo bench --locked --bench throughput
