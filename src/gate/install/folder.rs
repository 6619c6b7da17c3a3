//! Reads and replaces files in folders to which others write too.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2},
};

use super::state::{Fault, Wait};
use crate::gate::conflist::{self, LARGEST, PLUGIN};

/// Our files while they are written. Runtimes load no file with this extension, and inotify shows them the rename.
pub(super) const TEMPORARY: &str = ".towpath-cni.tmp";

/// The types of Multus' plugins, which call the plugins of other files.
const MULTUS: [&str; 2] = ["multus", "multus-shim"];

/// How old an invalid file must be before it counts: until then another program may be writing it.
pub(super) const SETTLED: Duration = Duration::from_secs(1);

/// A configuration list as it was read.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) name: String,
    pub(super) text: String,
    /// The types of its plugins.
    pub(super) plugins: Vec<String>,
}

/// The names in a folder that a runtime reads, in its order.
pub(super) fn candidates(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            continue;
        }
        let name = entry.file_name();
        // Go's filepath.Ext: from the last dot, even if nothing is in front of it.
        let extension = name.as_bytes().rsplitn(2, |byte| *byte == b'.').next().unwrap_or_default();
        if name.as_bytes().contains(&b'.') && [&b"conf"[..], b"conflist", b"json"].contains(&extension) {
            names.push(name);
        }
    }
    names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    Ok(names.into_iter().map(|name| OsStr::to_string_lossy(&name).into_owned()).collect())
}

/// The configuration that a runtime loads, if our entry can be added to it.
pub(super) fn choose(folder: &Path) -> Result<Result<Chosen, Wait>, Fault> {
    let names = match candidates(folder) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Fault::io("listing", folder, &error)),
    };
    let mut invalid = None;
    for name in names {
        let path = folder.join(&name);
        if path.is_symlink() {
            return Err(Fault::Link(name));
        }
        let (bytes, file) = match read(&path) {
            Ok(read) => read,
            // Gone since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Fault::io("reading", &path, &error)),
        };
        let is_list = name.ends_with(".conflist");
        let read = conflist::text(&bytes).and_then(|text| {
            let plugins =
                if is_list { conflist::plugin_types(text)? } else { vec![conflist::single_type(text)?] };
            Ok((text, plugins))
        });
        match read {
            Ok((_, plugins)) if plugins.iter().any(|plugin| MULTUS.contains(&&**plugin)) => {
                return Err(Fault::Multus(name));
            }
            Ok(_) if !is_list => return Err(Fault::Single(name)),
            Ok((text, plugins)) => {
                let text = text.to_owned();
                return Ok(Ok(Chosen { name, text, plugins }));
            }
            Err(error) => {
                let age = file.modified().ok().and_then(|then| SystemTime::now().duration_since(then).ok());
                if age.is_none_or(|age| age < SETTLED) {
                    return Ok(Err(Wait::Busy(name)));
                }
                invalid.get_or_insert((name, error));
            }
        }
    }
    Ok(Err(match invalid {
        None => Wait::NoConfiguration(folder.to_owned()),
        Some((file, error)) => Wait::NoneValid { folder: folder.to_owned(), file, error },
    }))
}

/// A file, up to one byte more than the largest that is edited.
pub(super) fn read(path: &Path) -> io::Result<(Vec<u8>, fs::Metadata)> {
    // Nobody waits here for the other end of a pipe.
    let options = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(options.bits()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes, metadata))
}

/// Whether a plugin is in a folder. A link counts: in k3s they are links, which lead elsewhere inside of a container.
pub(super) fn is_there(folder: &Path, plugin: &str) -> bool {
    !plugin.contains('/') && plugin != PLUGIN && fs::symlink_metadata(folder.join(plugin)).is_ok()
}

/// Replaces the contents of a configuration; `false` if these are no longer what was read. Mode and owner stay.
pub(super) fn replace(folder: &Path, old: &Chosen, new: &str) -> Result<bool, Fault> {
    let path = folder.join(&old.name);
    let failed = |error| Fault::io("writing", &path, &error);
    let metadata = match read(&path) {
        Ok((bytes, metadata)) if bytes == old.text.as_bytes() => metadata,
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    let mut owner = None;
    let temporary = write_beside(folder, new.as_bytes(), |file| {
        let ours = file.metadata()?;
        let (uid, gid) = (metadata.uid(), metadata.gid());
        if (ours.uid(), ours.gid()) != (uid, gid) {
            owner = fchown(file, Some(uid), Some(gid)).is_err().then_some((uid, gid));
        }
        // After the owner, since a new owner clears some bits.
        file.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o7777))
    })
    .map_err(failed)?;
    if let Some((uid, gid)) = owner {
        return Err(Fault::Owner { file: old.name.clone(), uid, gid });
    }
    let done = exchange_expecting(&temporary.0, &path, old.text.as_bytes(), new.as_bytes()).map_err(failed);
    sync(folder);
    done
}

/// A file that is removed when it is dropped, if it is still there.
pub(super) struct Temporary(pub(super) PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is gone if it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}

/// A new file of ours in a folder, complete and on disk.
pub(super) fn write_beside(
    folder: &Path,
    contents: &[u8],
    adjust: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<Temporary> {
    let path = folder.join(TEMPORARY);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    let temporary = Temporary(path);
    file.write_all(contents)?;
    adjust(&file)?;
    file.sync_all()?;
    Ok(temporary)
}

/// Puts `new`, which is in the file `temporary`, in the place of `path`, if that still has the contents `expected`. In any
/// case the last text of another program is at `path` or was edited, and no text of ours is anywhere else.
fn exchange_expecting(temporary: &Path, path: &Path, expected: &[u8], new: &[u8]) -> io::Result<bool> {
    let exchange = || match renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(true),
        // Another program removed it.
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(io::Error::from(error)),
    };
    match exchange() {
        Ok(true) => {}
        Ok(false) => return Ok(false),
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
            // A filesystem without it. Another program may have written in the microseconds since the comparison.
            fs::rename(temporary, path)?;
            return Ok(true);
        }
        Err(error) => return Err(error),
    }
    let (mut out, _) = read(temporary)?;
    if out == expected {
        return Ok(true);
    }
    // What came out is newer than what was edited, and belongs at its name. Another may have arrived there meanwhile.
    let mut placed = new.to_vec();
    loop {
        if !exchange()? {
            // Removed after it was replaced: the newest state is that there is none.
            return Ok(false);
        }
        let expected = std::mem::replace(&mut placed, out);
        out = read(temporary)?.0;
        if out == expected {
            return Ok(false);
        }
    }
}

/// Writes a folder's names to disk. Without that they are there all the same, until the power fails.
pub(super) fn sync(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}
