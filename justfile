# The verbs of this project; `just` lists them. ./demo and ./test work without just.

set shell := ["bash", "-euo", "pipefail", "-c"]

_default:
    @just --list --unsorted

# compile everything, tests included
build:
    cargo build --locked --all-targets

# compile the optimised binary: target/release/pgleash
release:
    cargo build --locked --release

# install what the tests need and run them all, as CI does
test *args:
    ./test {{ args }}

# what to run before each commit: formatting, clippy, and all tests that need no server
check:
    cargo fmt --all --check
    cargo clippy --locked --all-targets -- -D warnings
    cargo nextest run --locked --workspace --exclude pgleash --lib

# formatting, clippy and shell scripts, with no warning allowed
lint:
    cargo fmt --all --check
    cargo clippy --locked --all-targets -- -D warnings
    shellcheck demo test .ci/run deploy/app deploy/check packaging/bom packaging/deb/*
    python3 -c 'import ast, sys; [ast.parse(open(path).read(), path) for path in sys.argv[1:]]' bench/idle bench/own_settings.py bench/relay bench/scratch.py dashboards/*.py dashboards/smoke dashboards/prometheus/tests/generate.py deploy/*.py deploy/receiver deploy/helm/check.py deploy/kubernetes/check.py deploy/kubernetes/generate deploy/kubernetes/grace docs/check packaging/build packaging/check docs/picture tests/notify/run tests/page/run tests/servers

# format the sources
fmt:
    cargo fmt --all

# play the incident on a real PostgreSQL, without and with the watchdog
demo *args:
    ./demo {{ args }}

# pgbench directly, through PgBouncer and through pgleash: CPU per transaction, throughput, p99
bench-relay *args:
    cargo build --locked --release --quiet
    bench/relay {{ args }}

# pgleash's judge and the field's rules on simulated checkouts of which it is known which leak
bench-detection *args:
    cargo bench --locked --quiet --bench detection -- {{ args }}

# what a look at 10,000 checkouts, the books of a statement, and a scrape of 10,000 checkouts cost
bench-judgement *args:
    cargo bench --locked --quiet --bench judgement -- {{ args }}

# memory of an idle client, through PgBouncer and through pgleash, and a scrape; --goal 5 fails if that takes over 5 ms
bench-idle *args:
    cargo build --locked --release --quiet
    bench/idle {{ args }}

# licences, duplicate crates and sources of the dependencies
deny:
    cargo deny --locked --all-features check bans licenses sources

# known vulnerabilities in the dependencies; fetches the advisory database, so it needs the network
advisories:
    cargo deny --locked check advisories

# a fuzz target (first_packets, frames, prepared, statements) until it finds something; needs cargo-fuzz
fuzz target *args:
    mkdir -p fuzz/target/found/{{ target }}
    RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir fuzz --sanitizer none {{ target }} fuzz/target/found/{{ target }} fuzz/corpus/{{ target }} -- {{ args }}

# random programs of several clients, on sessions of their own and through pgleash; the seeds that diverge are printed
state-fuzz steps="1000000" seed="1":
    PGLEASH_STATE_FUZZ_STEPS={{ steps }} PGLEASH_STATE_FUZZ_SEED={{ seed }} cargo nextest run --locked --profile fuzz -E 'test(/^session_state::random::/)'

# API documentation, with every broken link an error
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

# check every link, key, metric, event and command that the documentation names, then build the book into target/book
book:
    docs/check
    @if command -v mdbook >/dev/null; then mdbook build docs; else echo "mdbook is not installed: cargo install mdbook --locked"; fi

# take docs/images/page.png, the picture of the live page, from a real run
picture *args:
    cargo build --locked --quiet
    docs/picture {{ args }}

# compose file, Dockerfile, release workflow, Kubernetes objects, Helm charts, alert rules with their tests and boards, as far as the tools here allow
deploy-check:
    deploy/check

# boards, rules and notifications against a live incident with PostgreSQL, pgleash, Prometheus and Alertmanager
boards *args:
    cargo build --locked --release --quiet
    dashboards/smoke {{ args }}

# the live page in headless Chromium, against real leaks; screenshots in target/page
page *args:
    cargo build --locked --quiet
    tests/page/run {{ args }}

# notifications against the types and verifiers that their receivers publish
notifications *args:
    cargo build --locked --quiet
    tests/notify/run {{ args }}

# the end-to-end tests on other versions of PostgreSQL, such as 16 17 18
servers *args:
    tests/servers {{ args }}

# the Debian package and the archive, in target/package/out
packages:
    cargo build --locked --release --quiet
    packaging/build --binary target/release/pgleash

# the same from the debug build: made, installed below a scratch root, started, removed
packages-check:
    cargo build --locked --quiet
    packaging/check target/debug/pgleash

# the container image
image tag="pgleash:dev":
    docker build --tag {{ tag }} .

# deploy/kubernetes's PrometheusRule and patches, after a change of the rules or of the sidecar
rules:
    deploy/kubernetes/generate

# postgres, pgleash with a load, Prometheus, Alertmanager and Grafana, on loopback
up:
    docker compose --profile load up --build --detach --wait

# stop them and forget their data
down:
    docker compose --profile load down --volumes
