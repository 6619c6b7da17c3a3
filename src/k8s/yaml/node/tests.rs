use super::*;

fn one(text: &str) -> YamlNode<'_> {
    let (mut documents, error) = parse(text);
    assert_eq!(error, None, "{text}");
    documents.remove(0).root.unwrap()
}

fn error(text: &str) -> SyntaxError {
    parse(text).1.unwrap_or_else(|| panic!("{text:?} was accepted"))
}

#[test]
fn values_have_their_line_and_column() {
    let root = one("a: 1\nb:\n  - x\n  - {c: d}\n");
    let path = FieldPath::of(&["b"]).index(1).key("c");
    assert_eq!(root.position(&path), Position { line: 4, column: 9 });
    assert_eq!(root.position(&FieldPath::of(&["b"])), Position { line: 2, column: 1 });
    assert_eq!(root.position(&FieldPath::of(&["a"])), Position { line: 1, column: 4 });
    assert_eq!(root.position(&FieldPath::of(&["b", "nowhere"])), Position { line: 2, column: 1 });
}

#[test]
fn json_and_crlf_are_parsed() {
    let json = "{\r\n\t\"a\": [1, true, null, \"y\", \"\\u00e4\\/\"]\r\n}\r\n";
    let root = one(json);
    let Some(Value::List(items)) = root.get("a").map(|node| &node.value) else { panic!("{root:?}") };
    assert_eq!(items[1].value, Value::Scalar("true".into(), ScalarKind::Bool(true)));
    assert_eq!(items[3].as_str(), Some("y"));
    assert_eq!(items[4].as_str(), Some("\u{e4}/"));
    assert_eq!(one("a: b\r\nc: d\r\n").get("c").and_then(YamlNode::as_str), Some("d"));
}

#[test]
fn documents_are_separated_and_blank_ones_are_skipped() {
    let (documents, error) = parse("# only this\n---\na: 1\n---\n---\nb: 2\n...\n");
    assert_eq!(error, None);
    assert_eq!(documents.iter().filter(|document| document.root.is_some()).count(), 2);
}

#[test]
fn repeated_key_names_both_positions() {
    let (documents, error) = parse("spec:\n  rules:\n  - from: 1\n    to: 2\n    from: 3\n");
    assert_eq!(error, None);
    let [repeated] = &documents[0].repeated[..] else { panic!("{documents:?}") };
    assert_eq!(repeated.path.to_string(), "spec.rules[0].from");
    assert_eq!(repeated.first, Position { line: 3, column: 5 });
    assert_eq!(repeated.again, Position { line: 5, column: 5 });
}

#[test]
fn repeated_key_is_found_among_many() {
    let mut lines: Vec<String> = (0..40).map(|n| format!("k{n}: 0")).collect();
    lines.extend(["k3: 1".to_owned(), "k39: 1".to_owned()]);
    let text = lines.join("\n");
    let (documents, _) = parse(&text);
    let lines: Vec<u32> = documents[0].repeated.iter().map(|repeated| repeated.first.line).collect();
    assert_eq!(lines, [4, 40]);
}

#[test]
fn anchors_aliases_and_merge_keys_are_followed() {
    let root = one("base: &b {a: 1, c: 2}\nuse:\n  <<: *b\n  a: 9\nsame: *b\n");
    let text = |path: &[&str]| match &root.nearest(&FieldPath::of(path)).value {
        Value::Scalar(text, _) => text.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(text(&["use", "a"]), "9");
    assert_eq!(text(&["use", "c"]), "2");
    assert_eq!(text(&["same", "a"]), "1");
}

#[test]
fn nested_aliases_do_not_exhaust_memory() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..30 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        let level = level.to_string();
        text.push_str(&["a", &level, ": &a", &level, " [", &below, "]\n"].concat());
    }
    assert!(error(&text).text.contains("too large"));
}

#[test]
fn yaml_error_has_a_position() {
    assert_eq!(error("a:\n  b: [1, 2\nc: 3\n").at.line, 3);
    assert!(error("a:\n\tb: 1\n").text.contains("tab"), "{}", error("a:\n\tb: 1\n"));
    assert!(error("y: 1\n").text.contains("write \"y\""));
    assert!(error("[a, b]: 1\n").text.contains("cannot be a key"));
    assert!(error("a: !wrong b\n").text.contains("remove it"));
    assert!(error(&"[".repeat(120)).text.contains("nested deeper"));
    assert!(error(&"[".repeat(5000)).text.contains("recursion limit"));
    assert!(error("a: &a [*a]\n").text.contains("inside of what"));
}

#[test]
fn tag_can_make_a_number_a_string() {
    assert_eq!(one("a: !!str 80\n").get("a").and_then(YamlNode::as_str), Some("80"));
}
