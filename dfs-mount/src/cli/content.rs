//! `dfs read` and `dfs write`: content in and out, in pieces that fit into memory.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{IsTerminal, Seek, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use dfs_common::ErrorKind;
use dfs_common::api::directory::Access;
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::block::Manifest;
use futures_util::StreamExt;

use super::args::{Read, Write};
use super::failure::{At, Failure, Outcome};
use super::past;
use super::progress::Progress;
use super::render;
use super::session::{Locked, Session, missing};
use super::upload::{FileSource, publish, spool};

/// Bytes of one request; two are under way at a time.
const PIECE: u64 = 4 << 20;

pub(crate) async fn read(session: &Session, arguments: &Read) -> Outcome {
    let path = &arguments.path;
    let entry = versioned(session, path).await?;
    let size = entry.attributes.size;
    let start = arguments.offset.min(size);
    let end = arguments.length.map_or(size, |length| start.saturating_add(length).min(size));
    let sink = match arguments.output.as_deref() {
        Some(file) if file != Path::new("-") => Sink::File(File::create(file).at(file)?),
        _ => Sink::Stdout,
    };
    session.using(entry.attributes.ino);
    let copied = copy(session, &entry, start..end, sink).await.at(path);
    session.unused(entry.attributes.ino);
    copied
}

/// The file at `path`, or the version that `path@N` names where no file has that name.
async fn versioned(session: &Session, path: &OsStr) -> Outcome<Entry> {
    let found = match session.existing(path, true).await {
        Err(e) if e.is(ErrorKind::NotFound) => match past::split_version(path) {
            Some((file, version)) => past::old_version(session, file, version).await?,
            None => return Err(e),
        },
        found => found?,
    };
    match found.attributes.kind {
        FileKind::File => Ok(found),
        FileKind::Directory => Err(Failure::new(ErrorKind::IsDirectory, "is a directory").at(path)),
        _ => Err(Failure::new(ErrorKind::Invalid, "is not a regular file").at(path)),
    }
}

/// Where content goes.
enum Sink {
    Stdout,
    File(File),
}

/// Content or a gap.
enum Piece {
    Data(Bytes),
    Hole(u64),
}

impl Sink {
    fn put(&mut self, piece: &Piece) -> std::io::Result<()> {
        match (self, piece) {
            (Sink::File(file), Piece::Data(bytes)) => file.write_all(bytes),
            (Sink::File(file), Piece::Hole(len)) => file.seek(SeekFrom::Current(*len as i64)).map(|_| ()),
            (Sink::Stdout, Piece::Data(bytes)) => std::io::stdout().lock().write_all(bytes),
            (Sink::Stdout, Piece::Hole(len)) => {
                std::io::copy(&mut std::io::Read::take(std::io::repeat(0), *len), &mut std::io::stdout().lock()).map(|_| ())
            }
        }
    }

    /// A file that ends in a hole gets its length here.
    fn finish(self, len: u64) -> std::io::Result<()> {
        match self {
            Sink::File(file) => file.set_len(len),
            Sink::Stdout => std::io::stdout().flush(),
        }
    }
}

async fn copy(session: &Session, entry: &Entry, range: std::ops::Range<u64>, mut sink: Sink) -> Outcome {
    session.cluster.directory.call(&Access::read(entry.attributes.ino)).await?;
    let wanted = range.end - range.start;
    let progress = Progress::new(wanted);
    if let (true, Some((_, content))) = (wanted > 0, session.cluster.small(entry).await?) {
        sink = put(sink, Piece::Data(content.slice(range.start as usize..range.end as usize))).await?;
        return Ok(sink.finish(wanted)?);
    }
    if wanted > 0 {
        let manifest = session.cluster.manifest(entry).await?;
        let bits = manifest.block_bits();
        let step = (PIECE >> bits) as u32;
        let (first, last) = ((range.start >> bits) as u32, ((range.end - 1) >> bits) as u32);
        let pieces = (first..=last).step_by(step as usize).map(|at| fetch(session, entry, &manifest, at, last.min(at + step - 1), &range));
        let mut pieces = futures_util::stream::iter(pieces).buffered(2);
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            progress.add(match &piece {
                Piece::Data(bytes) => bytes.len() as u64,
                Piece::Hole(len) => *len,
            });
            sink = put(sink, piece).await?;
        }
    }
    progress.finish();
    Ok(sink.finish(wanted)?)
}

/// Writes on another thread: a slow reader of our output must not keep the session from being renewed.
async fn put(mut sink: Sink, piece: Piece) -> Outcome<Sink> {
    let written = tokio::task::spawn_blocking(move || sink.put(&piece).map(|()| sink));
    Ok(written.await.expect("writing does not panic")?)
}

/// What of `range` lies in the blocks `first..=last`.
async fn fetch(session: &Session, entry: &Entry, manifest: &Manifest, first: u32, last: u32, range: &std::ops::Range<u64>) -> Outcome<Piece> {
    let base = u64::from(first) << manifest.block_bits();
    let limit = ((u64::from(last) + 1) << manifest.block_bits()).min(manifest.size());
    let (start, end) = (range.start.max(base), range.end.min(limit));
    if (first..=last).all(|index| manifest.get(index).is_none()) {
        return Ok(Piece::Hole(end - start));
    }
    let bytes = session.cluster.blocks(entry, manifest, first, last).await?;
    Ok(Piece::Data(bytes.slice((start - base) as usize..(end - base) as usize)))
}

pub(crate) async fn write(session: &Session, arguments: &Write) -> Outcome {
    let content = match arguments.file.as_deref() {
        Some(path) if path != Path::new("-") => {
            let file = File::open(path).at(path)?;
            let metadata = file.metadata().at(path)?;
            if metadata.is_dir() {
                return Err(Failure::new(ErrorKind::IsDirectory, "is a directory").at(path));
            }
            if metadata.is_file() && !arguments.append { file } else { spool(Bytes::new(), file).await.at(path)? }
        }
        _ => {
            if std::io::stdin().is_terminal() {
                eprintln!("dfs: reading standard input; end with Ctrl-D");
            }
            spool(Bytes::new(), std::io::stdin()).await?
        }
    };
    store(session, arguments, content).await
}

/// Puts `content` into the file: the write lock is held from here to the published version.
pub(crate) async fn store(session: &Session, arguments: &Write, content: File) -> Outcome {
    let path = &arguments.path;
    let locked = session.lock(path, "dfs write", arguments.waiting.wait).await?;
    let published = if arguments.append {
        append(session, &locked, content, arguments.sync).await
    } else {
        replace(session, &locked, content, arguments.sync).await
    };
    session.release(locked.entry.attributes.ino, locked.token).await;
    let entry = published.at(path)?;
    if session.json { render::json(&entry) } else { Ok(()) }
}

async fn replace(session: &Session, locked: &Locked, content: File, durable: bool) -> Outcome<Entry> {
    let source = FileSource::scan(content, &Manifest::empty(session.cluster.session().block_bits), 0).await?;
    Ok(publish(session, locked, &source, None, durable).await?)
}

async fn append(session: &Session, locked: &Locked, content: File, durable: bool) -> Outcome<Entry> {
    let base = session.cluster.manifest(&locked.entry).await?;
    // The last block is shorter than the others: its bytes travel again, in front of the new ones.
    let full = (base.size() >> base.block_bits()) as u32;
    let tail = match base.block_len(full) {
        0 => Bytes::new(),
        _ => session.cluster.blocks(&locked.entry, &base, full, full).await?,
    };
    let file = spool(tail, content).await?;
    let source = FileSource::scan(file, &base, full).await?;
    Ok(publish(session, locked, &source, Some(&base), durable).await?)
}

/// The whole of `entry` on standard output.
pub(crate) async fn print(session: &Session, entry: &Entry) -> Outcome {
    copy(session, entry, 0..entry.attributes.size, Sink::Stdout).await
}

/// The whole of `entry` in the local file `to`.
pub(crate) async fn download(session: &Session, entry: &Entry, to: &Path) -> Outcome {
    copy(session, entry, 0..entry.attributes.size, Sink::File(File::create(to).at(to)?)).await
}

/// The last component of `path`, for the name of a local copy.
pub(crate) fn last_component(path: &OsStr) -> Outcome<OsString> {
    let last = path.as_bytes().rsplit(|&b| b == b'/').find(|part| !part.is_empty());
    last.map(|name| OsStr::from_bytes(name).to_owned()).ok_or_else(|| missing().at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparse_file_keeps_holes_and_length() {
        let mut file = tempfile::tempfile().unwrap();
        let mut sink = Sink::File(file.try_clone().unwrap());
        sink.put(&Piece::Data(Bytes::from_static(b"ab"))).unwrap();
        sink.put(&Piece::Hole(10)).unwrap();
        sink.finish(12).unwrap();
        let mut content = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        std::io::Read::read_to_end(&mut file, &mut content).unwrap();
        assert_eq!(content, b"ab\0\0\0\0\0\0\0\0\0\0");
    }
}
