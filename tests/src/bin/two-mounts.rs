//! Runs random operations on one file by two mounts in turn; see `dfs_tests::alternate`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use dfs_tests::alternate::Alternate;

const USAGE: &str = "Usage: two-mounts [--seed N] [--operations N] DIR SAME-DIR-ON-ANOTHER-MOUNT";

fn main() -> Result<()> {
    let (mut seed, mut operations, mut directories) = (1, 20_000, Vec::new());
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        let mut number = |name: &str| -> Result<u64> {
            let value = args.next().with_context(|| format!("{name} wants a value"))?;
            value.to_str().and_then(|v| v.parse().ok()).with_context(|| format!("{name} wants a number, not {value:?}"))
        };
        match arg.to_str() {
            Some("--seed") => seed = number("--seed")?,
            Some("--operations") => operations = usize::try_from(number("--operations")?)?,
            Some("--help" | "-h") => {
                println!("{USAGE}");
                return Ok(());
            }
            Some(option) if option.starts_with('-') => bail!("unknown option {option}\n{USAGE}"),
            _ => directories.push(PathBuf::from(arg)),
        }
    }
    let [a, b] = directories.as_slice() else { bail!("two directories are wanted\n{USAGE}") };
    Alternate::new(a, b, seed)?.run(operations).with_context(|| format!("seed {seed}"))?;
    println!("{operations} operations agree, seed {seed}");
    Ok(())
}
