# The stages of `./test`, one recipe each. `just STAGE` runs one stage without the report; put the tools on PATH first, see
# CONTRIBUTING.md. Exit code 77 means skipped; a line `skipped: ...` gives the reason.

set shell := ["bash", "-euo", "pipefail", "-c"]
set positional-arguments

results := justfile_directory() / "target/test-results"
binary := justfile_directory() / "target/debug/daskade"
locked := if env("CI", "") != "" { "--locked" } else { "" }

[private]
default:
    @just --list --unsorted

# Check the format of the Rust code
fmt:
    cargo fmt --all --check

# Lint the Python code
ruff:
    ruff check .

# Check the types of the Python code
mypy:
    mypy

# Lint the Rust code
clippy:
    cargo clippy {{ locked }} --workspace --all-targets --all-features --quiet -- -D warnings
    cargo clippy {{ locked }} --features testing --quiet -- -D warnings

# Run the Rust tests; they need neither Python nor Dask
rust: (_nextest "rust" "")
    cargo test {{ locked }} --all-features --doc --quiet

# Run each fuzz target for 20 seconds
fuzz:
    tests/harness/fuzz "${FUZZ_SECONDS:-20}"

# Check licenses, sources and bans of the crates
deny:
    cargo-deny --log-level error check bans licenses sources

# Check the crates for known vulnerabilities
[no-exit-message]
advisories:
    #!/usr/bin/env bash
    set -uo pipefail
    log=$(mktemp)
    if cargo-deny fetch db 2>&1 | tee "$log"; then exec cargo-deny check advisories; fi
    grep -q "failed to fetch advisory database" "$log" || exit 1
    echo "skipped: RustSec's advisory database cannot be fetched from here"
    exit 77

# Test the Helm charts and the scripts for Argo CD
chart: _program
    PATH="$(just _chart-tools):$PATH" just _pytest chart "$(tests/harness/env chart)" tests/chart

# Test the test tools: the oracle of the survival tests and the report of `./test`
oracle:
    just _pytest oracle "$(tests/harness/env plain)" tests/survival/test_oracle.py tests/harness

# Test the runtime on the newest supported release of distributed
runtime-newest: (_runtime "runtime-newest" `tests/harness/versions newest`)

# Test the runtime on the oldest supported release of distributed
runtime-oldest: (_runtime "runtime-oldest" `tests/harness/versions oldest`)

# Test the runtime on releases of distributed between the oldest and the newest
runtime-all:
    #!/usr/bin/env bash
    set -euo pipefail
    for version in $(tests/harness/versions between); do
        echo "distributed $version"
        just _runtime runtime-all "$version"
        rm -rf "$(tests/harness/env dask "$version")"
    done

# Test the Rust code against real releases of Dask and a real S3 server
interop:
    #!/usr/bin/env bash
    set -uo pipefail
    verdict=0
    for version in newest oldest; do
        env=$(tests/harness/env dask "$(tests/harness/versions $version)") || exit 1
        DASKADE_TEST_PYTHON=$env/bin/python just _nextest interop "$version" --run-ignored only || verdict=1
    done
    exit $verdict

# Test the command line from end to end
e2e: _program
    #!/usr/bin/env bash
    set -euo pipefail
    old=$(tests/harness/env dask "$(tests/harness/versions oldest)")
    DASKADE_TEST_OLDEST=$old/bin/python just _pytest e2e "$(just _dask)" tests/e2e -n 3 --dist loadfile

# Kill processes of local runs at random points and check the result (SEEDS=N, default 50)
survival: (_survival "survival" env("SEEDS", "50"))

# Run the survival tests with 200 seeds
survival-200: (_survival "survival-200" env("SEEDS", "200"))

# Test clusters, runs and pipelines on a real Kubernetes cluster
cluster: (_kubernetes "cluster" "" "tests/cluster")

# Test what depends on the API server on the oldest supported version of Kubernetes
kube-oldest: (_kubernetes "kube-oldest" `basename -a -s .mod tests/kube/versions/*.mod | sort -V | head -n 1`)

# Test what depends on the API server on the newest supported version of Kubernetes
kube-newest: (_kubernetes "kube-newest" `basename -a -s .mod tests/kube/versions/*.mod | sort -V | tail -n 1`)

# Build the operator's image twice, compare the two, and check the bills of materials
image: (_root "to build images without a container engine")
    #!/usr/bin/env bash
    set -euo pipefail
    tools=$(tests/images/build)
    tests/kube/image release
    PATH="$tools:$PATH" DASKADE_TEST_IMAGES="$PWD/target/images" just _pytest image "$(tests/harness/env images)" tests/images

# Check that 500 unrelated pods and 2,000 unrelated Secrets cost the operator next to no memory
unrelated: (_root "to create a network namespace") _program
    PYTHONPATH=tests "$(just _dask)/bin/python" bench/operator/scale.py unrelated --binary {{ binary }} --pods 500 --secrets 2000

# Measure local runs beside a plain Dask client
bench: _dist
    PYTHONPATH=tests "$(just _dask)/bin/python" bench/run.py

# Measure the operator with many clusters and runs
bench-operator: (_root "to create a network namespace") _dist
    PYTHONPATH=tests "$(just _dask)/bin/python" bench/operator/scale.py unrelated
    PYTHONPATH=tests "$(just _dask)/bin/python" bench/operator/scale.py
    PYTHONPATH=tests "$(just _dask)/bin/python" bench/operator/runs.py
    DASKADE_TEST_LARGE=1000 DASKADE_TEST_OPERATOR=target/dist/daskade \
        cargo nextest run {{ locked }} --all-features --no-capture -E 'test(the_memory_of_the_operator_has_a_bound)'

# ------------------------------------------------------------------------------------------ what several stages share

# What earlier stages leave for this one in a whole run. `./test STAGE` does it first, so that it does not count as the stage's time
[no-exit-message]
_prepare stage:
    #!/usr/bin/env bash
    set -euo pipefail
    oldest() { tests/harness/env dask "$(tests/harness/versions oldest)" >/dev/null; }
    case {{ stage }} in
        chart | fuzz | cluster) just _program ;;
        survival) just _program && just _dask >/dev/null ;;
        e2e) just _program && just _dask >/dev/null && oldest ;;
        interop) cargo nextest run {{ locked }} --all-features --profile interop --no-run && just _dask >/dev/null && oldest ;;
        unrelated) just _program && just _dask >/dev/null && { [ "$(id -u)" != 0 ] || tests/kube/build >/dev/null; } ;;
    esac

_program:
    cargo build {{ locked }} --all-features --quiet

_dist:
    cargo build {{ locked }} --profile dist --features otlp --quiet

# The environment with the newest supported release of Dask
_dask:
    @tests/harness/env dask "$(tests/harness/versions newest)"

# helm and the interpreter of Argo CD's scripts
_chart-tools:
    @tests/chart/build

# A stage passes only if pytest does; collecting no tests is a failure
_pytest stage env *arguments:
    #!/usr/bin/env bash
    set -euo pipefail
    stage=$1 env=$2
    shift 2
    mkdir -p "{{ results }}/$stage"
    export PATH="$env/bin:$PATH"
    # The runtime's tests check which variables a step sees, so remove those of `./test`.
    case $stage in runtime-*) unset DASKADE_TEST_CACHE DASKADE_TEST_BUDGET ;; *) export DASKADE_BIN="{{ binary }}" ;; esac
    exec "$env/bin/python" -m pytest -q -rs -p no:cacheprovider --junitxml "{{ results }}/$stage/$(date +%s%N).xml" "$@"

# Run nextest and keep its JUnit file, even if tests fail
[no-exit-message]
_nextest stage name *arguments:
    #!/usr/bin/env bash
    set -uo pipefail
    stage=$1 name=$2 junit=target/nextest/$1/junit.xml
    shift 2
    rm -f "$junit"
    cargo nextest run {{ locked }} --all-features --profile "$stage" "$@"
    verdict=$?
    mkdir -p "{{ results }}/$stage"
    [ ! -e "$junit" ] || mv "$junit" "{{ results }}/$stage/rust-$name.xml"
    exit $verdict

_runtime stage version:
    just _pytest {{ stage }} "$(tests/harness/env dask {{ version }})" runtime/tests -n 4 --dist loadfile

_survival stage seeds: _program
    just _pytest {{ stage }} "$(just _dask)" tests/survival/test_survival.py --seeds {{ seeds }} -n 4 --maxschedchunk 1

[no-exit-message]
_root reason:
    @[ "$(id -u)" = 0 ] || { echo "skipped: needs root {{ reason }}"; exit 77; }

# Test on the cluster in KUBECONFIG, or on a local one that is stopped afterwards. By default, run only the tests that depend on
# the API server's version: definitions, admission policies, rights, the chart, and that clusters and runs work at all
[no-exit-message]
_kubernetes stage minor="" *tests="tests/cluster/test_objects.py tests/cluster/test_chart.py tests/cluster/test_rights.py tests/cluster/test_granted.py tests/cluster/test_operator.py tests/cluster/test_level.py tests/cluster/test_pipeline.py tests/cluster/test_run.py tests/cluster/test_tls.py tests/cluster/test_pipelinerun.py::test_a_run_makes_its_cluster_finishes_and_takes_the_cluster_down":
    #!/usr/bin/env bash
    set -uo pipefail
    stage=$1 minor=${2:-} own="" state=${CLUSTER_DIR:-/var/tmp/daskade-cluster}
    if [ -z "${KUBECONFIG:-}" ] && [ "$(id -u)" != 0 ]; then
        echo "skipped: needs root to start a cluster; or set KUBECONFIG"
        exit 77
    fi
    if [ -n "${KUBECONFIG:-}" ] && [ -n "$minor" ]; then
        echo "skipped: this stage starts its own Kubernetes $minor cluster; unset KUBECONFIG to run it"
        exit 77
    fi
    env=$(just _dask) && tools=$(just _chart-tools) && just _program || exit 1
    export PATH="$tools:$PATH"
    if [ -z "${KUBECONFIG:-}" ]; then
        own=yes
        trap '[ -n "${KEEP_CLUSTER:-}" ] || tests/kube/down' EXIT
        # Build images while `up` compiles Kubernetes: the Go compiler leaves a core idle part of the time.
        tests/kube/images --build &
        images=$!
        DASKADE_TEST_KUBE=$minor tests/kube/up || { wait "$images"; exit 1; }
        wait "$images" || exit 1
        export KUBECONFIG="$state/admin.kubeconfig" PATH="$state/bin:$PATH"
        echo "cluster started after $SECONDS s"
        tests/kube/images || exit 1
        echo "images loaded after $SECONDS s"
    fi
    export DASKADE_TEST_OWN_CLUSTER=$own DASKADE_TEST_POLICIES="${own:+enforced}"
    just _pytest "$stage" "$env" {{ tests }} -n 4 --dist loadgroup --no-loadscope-reorder
    verdict=$?
    if [ -n "$own" ] && [ "$stage" = cluster ]; then
        # Alone, since an API server that is down, or a node that takes no pods, would disturb the others.
        just _pytest "$stage" "$env" tests/cluster/test_survival.py -k "api-server or drain" || verdict=1
        # Last: compares what the operator did in all tests with the rights it has.
        DASKADE_TEST_AUDIT_LOGS=$state/log just _pytest "$stage" "$env" tests/cluster/test_used.py || verdict=1
    fi
    exit $verdict
