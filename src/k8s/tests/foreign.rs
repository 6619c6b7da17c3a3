//! Folders as repositories have them: what is left out, and what stays an error.

use std::{fs, path::Path};

use crate::k8s::manifest::{ForeignTexts, Loaded, Options, load};

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {}\n";

/// A folder with these files and a policy, as a command reads it that answers a question, and as `lint` does.
fn folder(files: &[(&str, &str)]) -> (Loaded, Loaded) {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("policy.yaml", POLICY.as_bytes());
    for (name, text) in files {
        write(name, text.as_bytes());
    }
    let read = |foreign| {
        load(&[folder.path().to_owned()], Options { workloads: true, foreign, ..Options::default() }).unwrap()
    };
    (read(ForeignTexts::LeaveOut), read(ForeignTexts::Refuse))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[track_caller]
fn left_out(file: &str, text: &str, note: &str) {
    let (lenient, strict) = folder(&[(file, text)]);
    assert!(!lenient.has_errors(), "{file}: {:?}", lenient.faults);
    assert_eq!(lenient.cluster().policies().count(), 1, "{file}");
    let [found] = &lenient.left_out[..] else { panic!("{file}: {:?}", lenient.left_out) };
    assert!(found.text.contains(note) && found.to_string().contains(": note: left out"), "{found}");
    assert_eq!(name(&found.file), name(Path::new(file)));
    assert!(strict.has_errors(), "{file} is no error for lint");
    assert_eq!(strict.left_out, []);
}

#[track_caller]
fn error(file: &str, text: &str) {
    let (lenient, strict) = folder(&[(file, text)]);
    assert_eq!(lenient.left_out, [], "{text}");
    assert!(lenient.has_errors(), "{text}: {:?}", lenient.faults);
    assert_eq!(lenient.faults.len(), strict.faults.len());
}

#[test]
fn files_of_other_programs_are_left_out() {
    let why = "not a Kubernetes object";
    left_out("package.json", r#"{"name": "shop", "bin": "x", "scripts": {"test": "jest"}}"#, why);
    left_out("tsconfig.json", "{\n  // comments\n  \"compilerOptions\": {\"strict\": true,},\n}\n", why);
    left_out("values.yaml", "replicas: 3\nimage: {name: web}\nkind: DaemonSet\n", why);
    left_out("docker-compose.yml", "version: '3'\nservices: {web: {image: nginx}}\n", why);
    left_out("patch.json", r#"[{"op": "replace", "path": "/spec/replicas", "value": 3}]"#, why);
    left_out("notes.yaml", "just a text\n", why);
    left_out("broken.yaml", "a: b: c\n", why);
    left_out("ci.yml", "spec: {stages: [test]}\n", why);
    left_out("Chart.lock.yaml", "apiVersion: v2\nname: web\nversion: 1.0.0\n", why);
}

#[test]
fn templates_name_the_command_that_renders_them() {
    let template = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {{ .Release.Name }}\n\
                    {{- if .Values.labels }}\n  labels: {}\n{{- end }}\nspec: {}\n";
    left_out("policy-template.yaml", template, "helm template CHART");
    let quoted =
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: \"{{ .Release.Name }}\"}\n";
    let chart = ("web/Chart.yaml", "apiVersion: v2\nname: web\n");
    let plain = ("web/templates/plain.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: web}\n");
    let (lenient, strict) = folder(&[
        chart,
        plain,
        ("web/templates/a.yaml", template),
        ("web/templates/b.yaml", quoted),
        ("web/values.yaml", "replicas: 1\n"),
    ]);
    assert!(!lenient.has_errors() && strict.has_errors(), "{:?}", lenient.faults);
    assert!(lenient.cluster().namespace("web").is_some(), "a file of a chart without templates is read");
    let notes: Vec<String> = lenient.left_out.iter().map(ToString::to_string).collect();
    let of_chart = notes.iter().find(|note| note.contains("left out 2 templates")).unwrap();
    assert!(
        of_chart.contains("pipe `helm template ") && of_chart.contains("/web` into this command"),
        "{notes:?}"
    );
}

#[test]
fn kustomization_and_its_patches_are_left_out() {
    let kustomization = "namespace: shop\nresources: [../policy.yaml]\npatches:\n- path: replicas.yaml\n- patch: |-\n    \
                         a: b\n  target: {kind: Pod}\npatchesStrategicMerge: [merge.yaml]\n";
    let merge = POLICY.replace("spec: {}", "spec: {ingress: [{}]}");
    let (lenient, strict) = folder(&[
        ("prod/kustomization.yaml", kustomization),
        (
            "prod/replicas.yaml",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 3}\n",
        ),
        ("prod/merge.yaml", &merge),
    ]);
    assert!(!lenient.has_errors() && strict.has_errors(), "{:?}", lenient.faults);
    assert_eq!(lenient.cluster().pods().count(), 0);
    let notes: Vec<(String, &str)> =
        lenient.left_out.iter().map(|note| (name(&note.file), note.text.as_str())).collect();
    let expected =
        [("merge.yaml", "patch"), ("replicas.yaml", "patch"), ("kustomization.yaml", "`kubectl kustomize ")];
    assert_eq!(notes.len(), expected.len(), "{notes:?}");
    for ((file, text), (expected, part)) in notes.iter().zip(expected) {
        assert!(file == expected && text.contains(part), "{notes:?}");
    }
}

#[test]
fn patch_that_no_kustomization_names_is_recognised_by_what_it_lacks() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n";
    let why = "only a part of an object";
    left_out("replicas.yaml", &format!("{deployment}spec: {{replicas: 3}}\n"), why);
    let delete =
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n$patch: delete\n";
    left_out("delete.yaml", delete, why);
}

#[test]
fn objects_of_known_kinds_stay_errors() {
    error("a.yaml", &POLICY.replace("spec: {}", "spec: {ingres: []}"));
    error("a.yaml", &POLICY.replace("kind:", "Kind:").replace("{name: p}", "{name: q}"));
    error("a.yaml", &POLICY.replace("kind:", "knd:"));
    error("a.yaml", &POLICY.replace("apiVersion: networking.k8s.io/v1\n", ""));
    error("a.yaml", &POLICY.replace("apiVersion:", "apiversion:").replace("kind: NetworkPolicy\n", ""));
    error("a.yaml", &POLICY.replace("v1", "v1beta1"));
    error("a.yaml", &POLICY.replace("spec: {}", "spec: {ingress: ["));
    error("a.json", "{\"apiVersion\": \"v1\", \"kind\" : \"Pod\", }}");
    error("a.yaml", &format!("- {}", POLICY.trim_end().replace('\n', "\n  ")));
    error("a.yaml", "apiVersion: v1\nkind: List\n");
    error("a.yaml", "apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\nspec: {}\n");
    let labelled = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: w}\nspec: {selector: {}}\n";
    error("a.yaml", labelled);
    // A second definition is an error as well, with braces in an annotation or without.
    error("a.yaml", &POLICY.replace("{name: p}", "{name: p, annotations: {a: '{{ b }}'}}"));
}

#[test]
fn document_of_utf_16_is_no_foreign_file() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> =
        "\u{feff}".encode_utf16().chain(POLICY.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    fs::write(folder.path().join("a.yaml"), bytes).unwrap();
    let options = Options { workloads: true, foreign: ForeignTexts::LeaveOut, ..Options::default() };
    assert!(load(&[folder.path().to_owned()], options).unwrap().has_errors());
}
