//! Where a valid object is, and how it was written: for findings about what it means.

use std::{path::PathBuf, sync::Arc};

use crate::k8s::{
    fault::{Fault, ObjectId, Problem},
    yaml::{
        node::{MapEntry, Value, YamlNode},
        path::{FieldPath, Position},
    },
};

/// An object as it was written: a part of its tree.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its tree. That of a policy is whole, of others only the metadata is kept: pods are many.
    pub root: YamlNode<'static>,
    /// Where the object is in its document, if that is a list.
    pub prefix: FieldPath,
}

/// Where an object is.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file; `-` is standard input.
    pub file: PathBuf,
    /// How many lines of the file come before its part of the text.
    pub lines: u32,
    /// How many characters of the first of these come before it.
    pub columns: u32,
    /// Which item of a list it is, if its part of the text is one.
    pub item: Option<usize>,
    /// Which object it is.
    pub id: ObjectId,
    /// How it was written.
    pub written: Arc<Written>,
}

impl Written {
    /// What is kept of `root`, which is at `prefix` in its document.
    #[must_use]
    pub fn of(root: &YamlNode<'_>, is_policy: bool, prefix: &FieldPath) -> Self {
        let kept = |entry: &&MapEntry<'_>| entry.key == "metadata";
        let root = if is_policy {
            root.clone().into_owned()
        } else {
            let entries = root.entries().iter().filter(kept).cloned().collect();
            YamlNode { at: root.at, value: Value::Map(entries) }.into_owned()
        };
        Self { root, prefix: prefix.clone() }
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.root.get("metadata")?.get("annotations")?.get(key)?.as_str()
    }

    /// The value at `path`; `None` if it is absent or null.
    #[must_use]
    pub fn value(&self, path: &[&str]) -> Option<&YamlNode<'static>> {
        path.iter().try_fold(&self.root, |node, key| node.get(key)).filter(|node| !node.is_null())
    }
}

impl Source {
    /// A fault of the object, at the position of its field.
    #[must_use]
    pub fn fault(&self, problem: &Problem) -> Fault {
        let at: Position = self.written.root.position(&problem.path).after(self.lines, self.columns);
        let mut fault = Fault::new(self.file.clone(), at, problem, Some(self.id.clone()));
        let path = self.written.prefix.join(&problem.path);
        let path = match self.item {
            Some(item) => FieldPath::of(&["items"]).index(item).join(&path),
            None => path,
        };
        fault.path = path.to_string();
        fault
    }
}
