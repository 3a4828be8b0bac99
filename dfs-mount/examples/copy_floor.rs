//! What moving the bytes alone takes on one machine: a program, a client and a server,
//! without FUSE, names, versions, or anybody to ask. With a cache file between program
//! and server, as a file system must have it that brings whole files into a local cache,
//! and without one. What is written is on the server's disk at the end; what is read comes
//! from it, so the kernel's caches are dropped before (as root). Content is hashed by both
//! sides when it is written, and by the client when it is read.
//!
//! ```text
//! cargo run --release -p dfs-mount --example copy_floor -- DIRECTORY --mib 512
//! ```
//!
//! Compare with the rows "write" and "cold-read" of `dfs bench` in the same hour.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use clap::Parser;
use dfs_common::block::BlockHash;

/// What is moved at a time.
const PIECE: usize = 1 << 20;

/// Measures what moving bytes takes between a program, a client with or without a cache file, and a server.
#[derive(Debug, Parser)]
struct Arguments {
    /// An empty directory on the disk to measure.
    directory: PathBuf,
    /// How much is moved.
    #[arg(long, default_value_t = 512)]
    mib: usize,
    /// How often each is done.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

fn connection() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

fn create(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(true).open(path)
}

fn at(number: usize) -> u64 {
    (number * PIECE) as u64
}

/// Sends the pieces `numbers` of `file`, each once it is named.
fn send(file: &File, numbers: impl IntoIterator<Item = usize>, hashed: bool, mut to: TcpStream) -> io::Result<()> {
    let mut piece = vec![1; PIECE];
    for number in numbers {
        file.read_exact_at(&mut piece, at(number))?;
        if hashed {
            black_box(BlockHash::of(&piece));
        }
        to.write_all(&piece)?;
    }
    Ok(())
}

/// Receives `count` pieces, and hands each to `take`.
fn receive(count: usize, mut from: TcpStream, mut take: impl FnMut(usize, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut piece = vec![1; PIECE];
    for number in 0..count {
        from.read_exact(&mut piece)?;
        black_box(BlockHash::of(&piece));
        take(number, &piece)?;
    }
    Ok(())
}

/// What `work` says, or that it panicked.
fn end<T>(work: ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    work.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

/// Until what the program writes is on the server's disk.
fn write(directory: &Path, content: &[u8], cached: bool) -> io::Result<()> {
    let (cache, stored) = (create(&directory.join("cache"))?, create(&directory.join("stored"))?);
    let (mut client, server) = connection()?;
    thread::scope(|scope| {
        let storing = scope.spawn(|| {
            receive(content.len() / PIECE, server, |number, piece| stored.write_all_at(piece, at(number)))?;
            stored.sync_all()
        });
        if cached {
            let (written, numbers) = channel();
            let sending = scope.spawn(|| send(&cache, numbers, true, client));
            for (number, piece) in content.chunks_exact(PIECE).enumerate() {
                cache.write_all_at(piece, at(number))?;
                written.send(number).map_err(io::Error::other)?;
            }
            drop(written);
            end(sending)?;
        } else {
            for piece in content.chunks_exact(PIECE) {
                black_box(BlockHash::of(piece));
                client.write_all(piece)?;
            }
        }
        end(storing)
    })
}

/// Until the program has all of what only the server's disk has.
fn read(directory: &Path, content: &mut [u8], cached: bool) -> io::Result<()> {
    let (cache, stored) = (create(&directory.join("cache"))?, File::open(directory.join("stored"))?);
    let (client, server) = connection()?;
    let count = content.len() / PIECE;
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(&stored, 0..count, false, server));
        if cached {
            let (arrived, numbers) = channel();
            let cache = &cache;
            let receiving = scope.spawn(move || {
                receive(count, client, |number, piece| {
                    cache.write_all_at(piece, at(number))?;
                    arrived.send(number).map_err(io::Error::other)
                })
            });
            for number in numbers {
                cache.read_exact_at(&mut content[number * PIECE..][..PIECE], at(number))?;
            }
            end(receiving)?;
        } else {
            receive(count, client, |number, piece| {
                content[number * PIECE..][..PIECE].copy_from_slice(piece);
                Ok(())
            })?;
        }
        end(sending)
    })
}

/// Everything on disk, and nothing in the kernel's caches.
fn make_cold(directory: &Path) -> io::Result<()> {
    File::open(directory.join("stored"))?.sync_all()?;
    std::fs::write("/proc/sys/vm/drop_caches", "3")
}

/// What is measured: its title, whether it reads, and whether it goes through a cache file.
const KINDS: [(&str, bool, bool); 4] = [
    ("write through a cache file", false, true),
    ("write without one", false, false),
    ("read cold through a cache file", true, true),
    ("read cold without one", true, false),
];

fn measure(arguments: &Arguments) -> io::Result<()> {
    let directory = arguments.directory.as_path();
    let mut content = vec![1; arguments.mib * PIECE];
    let mut rates: [Vec<f64>; KINDS.len()] = Default::default();
    for round in 0..arguments.rounds {
        content.chunks_exact_mut(8).enumerate().for_each(|(at, word)| word.copy_from_slice(&(at * 31 + round).to_le_bytes()));
        for ((_, reads, cached), rates) in KINDS.into_iter().zip(&mut rates) {
            if reads {
                make_cold(directory)?;
            }
            let begin = Instant::now();
            if reads {
                read(directory, &mut content, cached)?
            } else {
                write(directory, &content, cached)?
            }
            rates.push(content.len() as f64 / 1e6 / begin.elapsed().as_secs_f64());
        }
    }
    for ((title, ..), mut rates) in KINDS.into_iter().zip(rates) {
        rates.sort_by(f64::total_cmp);
        println!("{title:32} {:6.0} MB/s ({:.0} to {:.0})", rates[rates.len() / 2], rates[0], rates[rates.len() - 1]);
    }
    ["cache", "stored"].iter().try_for_each(|name| std::fs::remove_file(directory.join(name)))
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    if arguments.mib == 0 || arguments.rounds == 0 {
        return Err(io::Error::other("nothing to measure"));
    }
    measure(&arguments)
}
