# This project, built by cargo: sources and target directory here, crates from the registry's local copy; CARGO_PACKAGE=--workspace for all of it.
# packages: gcc libc6-dev tar
sources=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
# HOME is a directory of its own here; cargo and the crates are the user's.
home=$(getent passwd "$(id -u)" | cut -d : -f 6)
export CARGO_HOME=${CARGO_HOME:-$home/.cargo} RUSTUP_HOME=${RUSTUP_HOME:-$home/.rustup} CARGO_INCREMENTAL=1 CARGO_PROFILE_DEV_DEBUG=0
export PATH=$PATH:$CARGO_HOME/bin
unset CARGO_TARGET_DIR
mkdir project
tar -C "$sources" --exclude=target -cf - Cargo.toml Cargo.lock dfs-common dfs-server dfs-mount tests | tar -C project -xf -
cd project
build() { cargo build --offline --locked "${CARGO_PACKAGE:---package=dfs-common}" >build.log 2>&1 || { cat build.log; return 1; }; }
build
grep -q 'Compiling dfs-common' build.log
# Times are compared with those of the build: nothing is built twice, and what has changed is.
build
test "$(grep -c Compiling build.log)" = 0 || { cat build.log; exit 1; }
echo '// changed' >>dfs-common/src/lib.rs
build
grep -q 'Compiling dfs-common' build.log
test "$(grep Compiling build.log | grep -vc 'Compiling dfs-')" = 0 || { cat build.log; exit 1; }
rm -r target
