# What this project is built, tested and measured with. `make` alone lists the targets.

# The size of `make chaos`.
FAULTS ?= 200
ITEMS ?= 1000000

.PHONY: help tools test test-long test-rabbitmq4 chaos lint bench audit

help:
	@echo "make test    install what tests need (RabbitMQ and PostgreSQL, by apt), lint, and run every test"
	@echo "make test-long    what takes minutes: 100,000 programs, none of which may see anything of another's item"
	@echo "make test-rabbitmq4    the suites of RabbitMQ on the newest 4.x, which it unpacks into target/ (as root)"
	@echo "make chaos   FAULTS=200 faults of a fleet and its three RabbitMQ nodes over ITEMS=1000000 items; takes long"
	@echo "make lint    formatting, clippy and documentation, warnings denied"
	@echo "make bench   the benchmarks of the README, with their rivals in the same run"
	@echo "make audit   advisories, licences and sources of dependencies (needs cargo-deny)"

tools:
	@scripts/install-test-tools.sh

test: tools lint
	@scripts/test.sh

test-long:
	WINDROW_TEST_PROGRAMS=100000 cargo test -p windrow-tests --test isolation -- --nocapture

test-rabbitmq4:
	@scripts/install-rabbitmq4.sh target/rabbitmq4
	@WINDROW_TEST_RABBITMQ_ROOT=$(CURDIR)/target/rabbitmq4 scripts/test-rabbitmq.sh

chaos: tools
	WINDROW_CHAOS_FAULTS=$(FAULTS) WINDROW_CHAOS_ITEMS=$(ITEMS) cargo test --release -p windrow-tests --test chaos -- --nocapture

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet

bench: tools
	cargo build --release --workspace
	cargo bench -p windrow-tests

audit:
	cargo deny check
