//! The folder for the demo's manifests and the daemons' logs, for as long as it runs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::error::DemoError;

/// A new folder in the system's temporary directory. It is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Result<Self, DemoError> {
        let template = std::env::temp_dir().join("towpath-demo-XXXXXX");
        let made = nix::unistd::mkdtemp(&template).map_err(std::io::Error::from);
        let folder = Self(made.map_err(DemoError::io(format!("make a folder {}", template.display())))?);
        let objects = folder.objects();
        fs::create_dir(&objects).map_err(DemoError::io(format!("make the folder {}", objects.display())))?;
        Ok(folder)
    }

    /// Where the manifests are.
    pub(super) fn objects(&self) -> PathBuf {
        self.0.join("objects")
    }

    /// Where the daemons keep their locks.
    pub(super) fn locks(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Where a daemon's log goes.
    pub(super) fn log(&self, node: &str) -> PathBuf {
        self.0.join(format!("{node}.log"))
    }

    /// The last lines of a daemon's log.
    pub(super) fn end_of_log(&self, node: &str) -> String {
        let text = fs::read_to_string(self.log(node)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }

    /// Writes a manifest atomically: under another name first, then renamed.
    pub(super) fn put(&self, name: &str, text: &str) -> Result<(), DemoError> {
        let (draft, path) = (self.objects().join(format!(".{name}.new")), self.objects().join(name));
        write_and_rename(&draft, &path, text).map_err(DemoError::io(format!("write {}", path.display())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed now is left to the system's own cleaning.
        let _left = fs::remove_dir_all(&self.0);
    }
}

fn write_and_rename(draft: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    fs::write(draft, text)?;
    fs::rename(draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_folder_is_removed() {
        let folder = Folder::new().unwrap();
        folder.put("a.yaml", "one").unwrap();
        folder.put("a.yaml", "two").unwrap();
        fs::write(folder.log("node-1"), "first\nlast\n").unwrap();
        assert_eq!(fs::read_to_string(folder.objects().join("a.yaml")).unwrap(), "two");
        assert_eq!(fs::read_dir(folder.objects()).unwrap().count(), 1, "no draft stays");
        assert_eq!(folder.end_of_log("node-1"), "first\nlast");
        let path = folder.0.clone();
        drop(folder);
        assert!(!path.exists());
    }
}
