//! The FUSE driver: `dfs-mount SOURCE MOUNTPOINT -o …`, also behind mount(8).

fn main() -> std::process::ExitCode {
    dfs_mount::driver::main()
}
