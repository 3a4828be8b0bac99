//! The `dfs` program; everything is in [`dfs_mount::cli`].

fn main() -> std::process::ExitCode {
    dfs_mount::cli::main()
}
