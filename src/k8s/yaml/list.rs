//! Splits a long list of objects into its items without parsing them.
//!
//! `kubectl get -o yaml` writes a whole cluster as one `List`: one document. Parsing all of it because one label
//! changed would take a hundred times as long as parsing the label's pod. So the text is split where its items begin.
//!
//! The split is careful rather than clever: text that is not laid out exactly as `kubectl` and JSON writers do it is
//! not split at all. And a wrong split cannot be parsed: an item that spans it is not YAML on either side of it, and
//! then the whole document is parsed as one. So an item is never read as something that it is not.

use super::{
    node::{self, Value, YamlNode},
    pieces::Piece,
};

/// A list, split into its items.
#[derive(Debug, PartialEq, Eq)]
pub struct List<'t> {
    /// The apiVersion of the list.
    pub api: String,
    /// The kind of its items; empty if each item states its own.
    pub kind: String,
    /// Its items, in order. In YAML, each with its dash, as a list of one.
    pub items: Vec<Piece<'t>>,
}

/// The items of the document `text`, if it is a list that can be split.
#[must_use]
pub fn cut(text: &str) -> Option<List<'_>> {
    let (header, items) = match text.trim_start().as_bytes().first()? {
        b'{' => Json { text, at: 0 }.cut()?,
        _ => yaml(text)?,
    };
    let (mut documents, error) = node::parse(&header);
    let (Some(document), true, None) = (documents.pop(), documents.is_empty(), error) else { return None };
    let root = document.root.filter(|_| document.repeated.is_empty())?;
    let known = |key: &str| ["apiVersion", "kind", "items", "metadata"].contains(&key);
    if !root.entries().iter().all(|entry| known(&entry.key)) {
        return None;
    }
    let text = |field| root.get(field).and_then(YamlNode::as_str);
    let kind = text("kind")?.strip_suffix("List")?.to_owned();
    Some(List { api: text("apiVersion")?.to_owned(), kind, items })
}

/// The single item in the root of a piece of a list; `None` if it is anything else.
#[must_use]
pub fn item<'n, 't>(root: &'n YamlNode<'t>, text: &str) -> Option<&'n YamlNode<'t>> {
    match &root.value {
        Value::List(items) if !text.starts_with('{') => match &items[..] {
            [item] => Some(item),
            _ => None,
        },
        Value::Map(_) if text.starts_with('{') => Some(root),
        _ => None,
    }
}

/// Splits a block sequence under `items:` at every dash in the column of the first; also returns the rest of the text.
fn yaml(text: &str) -> Option<(String, Vec<Piece<'_>>)> {
    let mut header = String::new();
    let mut items: Vec<Piece<'_>> = Vec::new();
    let (mut at, mut inside, mut indent) = (0, false, None);
    let mut start: Option<(u32, usize)> = None;
    let piece = |(lines, start): (u32, usize), end| Piece { lines, columns: 0, text: &text[start..end] };
    for (number, line) in (0u32..).zip(text.split_inclusive('\n')) {
        let content = line.trim_start_matches(' ');
        let column = line.len() - content.len();
        let bare = content.trim_end();
        let silent = bare.is_empty() || bare.starts_with('#');
        let dash = bare == "-" || bare.starts_with("- ");
        if line.starts_with("...") || line.starts_with('%') {
            return None;
        }
        if inside && !silent && indent.is_none() {
            indent = dash.then_some(column);
            indent?;
        }
        if inside && !silent && column == 0 && !dash {
            items.extend(start.take().map(|start| piece(start, at)));
            inside = false;
        }
        if inside && !silent && dash && indent == Some(column) {
            items.extend(start.replace((number, at)).map(|start| piece(start, at)));
        } else if !inside && line.starts_with("items:") {
            let rest = bare.strip_prefix("items:").unwrap_or_default().trim_start();
            if !items.is_empty() || !(rest.is_empty() || rest.starts_with('#')) {
                return None;
            }
            inside = true;
        } else if !inside {
            header.push_str(line);
        }
        at += line.len();
    }
    items.extend(start.map(|start| piece(start, at)));
    Some((header, items))
}

/// A JSON scanner that skips values without parsing them.
struct Json<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Json<'t> {
    /// Splits the array under `"items"` of the outermost object; also returns the text without the array's contents.
    fn cut(mut self) -> Option<(String, Vec<Piece<'t>>)> {
        let mut cut = None;
        self.expect(b'{')?;
        loop {
            let key = self.value()?;
            self.expect(b':')?;
            if key == "\"items\"" {
                if cut.is_some() {
                    return None;
                }
                self.expect(b'[')?;
                let start = self.at;
                let items = self.array()?;
                cut = Some((start, self.at - 1, items));
            } else {
                self.value()?;
            }
            match self.next()? {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
        if self.next().is_some() {
            return None;
        }
        let (start, end, items) = cut?;
        Some((format!("{}{}", &self.text[..start], &self.text[end..]), items))
    }

    /// The objects of an array whose opening bracket was already read; moves past its end.
    fn array(&mut self) -> Option<Vec<Piece<'t>>> {
        let mut items = Vec::new();
        let mut counted = (0, 0, 0);
        loop {
            self.skip_blanks();
            let start = self.at;
            if !self.text[start..].starts_with('{') {
                return (self.next() == Some(b']') && items.is_empty()).then_some(items);
            }
            let text = self.value()?;
            counted = self.count(counted, start);
            let (_, lines, columns) = counted;
            items.push(Piece { lines, columns, text });
            match self.next()? {
                b',' => {}
                b']' => return Some(items),
                _ => return None,
            }
        }
    }

    /// How many lines come before `to`, and how many characters of its own line, continuing the previous count.
    fn count(&self, (from, lines, columns): (usize, u32, u32), to: usize) -> (usize, u32, u32) {
        let between = &self.text[from..to];
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        match between.rfind('\n') {
            None => (to, lines, columns + number(between.chars().count())),
            Some(last) => {
                let breaks = between.bytes().filter(|byte| *byte == b'\n').count();
                (to, lines + number(breaks), number(between[last + 1..].chars().count()))
            }
        }
    }

    fn skip_blanks(&mut self) {
        let blanks = self.text[self.at..].bytes().take_while(|byte| b" \t\r\n".contains(byte)).count();
        self.at += blanks;
    }

    fn next(&mut self) -> Option<u8> {
        self.skip_blanks();
        let byte = *self.text.as_bytes().get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    /// The text of the next value, which ends where its brackets and quotes do.
    fn value(&mut self) -> Option<&'t str> {
        self.skip_blanks();
        let bytes = self.text.as_bytes();
        let (start, mut depth) = (self.at, 0usize);
        loop {
            match *bytes.get(self.at)? {
                b'"' => self.string()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' if depth > 0 => self.at += 1,
                byte if byte.is_ascii_alphanumeric() || b"+-.".contains(&byte) => self.at += 1,
                b',' | b':' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n' if self.at > start => {
                    return Some(&self.text[start..self.at]);
                }
                // Comments, other quotes, anchors: YAML, but not JSON.
                _ => return None,
            }
            if depth == 0 && matches!(bytes[self.at - 1], b'"' | b'}' | b']') {
                return Some(&self.text[start..self.at]);
            }
        }
    }

    /// Moves past a string.
    fn string(&mut self) -> Option<()> {
        let bytes = self.text.as_bytes();
        self.at += 1;
        loop {
            match *bytes.get(self.at)? {
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(text: &str) -> Option<Vec<(u32, u32, &str)>> {
        cut(text).map(|list| list.items.iter().map(|item| (item.lines, item.columns, item.text)).collect())
    }

    #[test]
    fn yaml_list_is_split_at_its_dashes() {
        let text =
            "apiVersion: v1\nitems:\n# first\n- a: 1\n  b:\n  - x\n\n- a: |\n    - not here\nkind: List\n";
        let expected = [(3, 0, "- a: 1\n  b:\n  - x\n\n"), (7, 0, "- a: |\n    - not here\n")];
        assert_eq!(items(text).unwrap(), expected);
        let text = "kind: PodList\napiVersion: v1\nitems:\n  - a: 1\n  -\n    a: 2\nmetadata:\n  resourceVersion: \"1\"\n";
        assert_eq!(items(text).unwrap(), [(3, 0, "  - a: 1\n"), (4, 0, "  -\n    a: 2\n")]);
        assert_eq!(cut(text).unwrap().kind, "Pod");
    }

    #[test]
    fn json_list_is_split_between_its_braces() {
        let text =
            "{\"kind\":\"List\",\"apiVersion\":\"v1\",\"items\":[{\"a\":\"}\\\"]\"}, {\"b\":[1]}\n,{}]}";
        assert_eq!(
            items(text).unwrap(),
            [(0, 42, "{\"a\":\"}\\\"]\"}"), (0, 56, "{\"b\":[1]}"), (1, 1, "{}")]
        );
        assert_eq!(items("{\"kind\":\"List\",\"apiVersion\":\"v1\",\"items\":[]}").unwrap(), []);
    }

    #[test]
    fn other_layouts_are_not_split() {
        for text in [
            "",
            "a: 1\n",
            "apiVersion: v1\nkind: Pod\nitems:\n- a: 1\n",
            "apiVersion: v1\nkind: List\nitems: [{a: 1}]\n",
            "apiVersion: v1\nkind: List\nitems:\n  a: 1\n",
            "apiVersion: v1\nkind: List\nitems:\n- a: 1\nitems:\n- a: 1\n",
            "apiVersion: v1\nkind: List\nkind: List\nitems:\n- a: 1\n",
            "apiVersion: v1\nkind: List\nother: 1\nitems:\n- a: 1\n",
            "apiVersion: v1\nkind: List\nitems:\n- a: 1\n...\n",
            "{\"kind\":\"List\",\"apiVersion\":\"v1\",\"items\":[{}],\"items\":[{}]}",
            "{\"kind\":\"List\",\"apiVersion\":\"v1\",\"items\":[{} # a\n]}",
            "{\"kind\":\"List\",\"apiVersion\":\"v1\",\"items\":[{'a':1}]}",
            "{\"kind\":\"List\",\"apiVersion\":\"v1\",\"items\":[{}",
            "{\"kind\":\"List\",\"apiVersion\":\"v1\",\"items\":[{},]}",
            "{\"kind\":\"List\",\"apiVersion\":\"v1\",\"items\":[{}]} {}",
        ] {
            assert_eq!(items(text), None, "{text}");
        }
    }
}
