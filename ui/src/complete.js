// Completion in a NetworkPolicy: the fields of the standard, and the labels, namespaces and ports that exist.

const PORT = { protocol: null, port: null, endPort: null };
const SELECTOR = {
  matchLabels: null,
  matchExpressions: { key: null, operator: null, values: null },
};
const PEER = {
  podSelector: SELECTOR,
  namespaceSelector: SELECTOR,
  ipBlock: { cidr: null, except: null },
};
const FIELDS = {
  apiVersion: null,
  kind: null,
  metadata: { name: null, namespace: null, labels: null, annotations: null },
  spec: {
    podSelector: SELECTOR,
    policyTypes: null,
    ingress: { from: PEER, ports: PORT },
    egress: { to: PEER, ports: PORT },
  },
};

const LINE = /^(\s*)((?:- +)*)([^\s:#-][^:]*?)?(:(?:\s+(.*))?)?$/;

/** A line of YAML in block style: where its key begins, its key, and whether it begins an item. */
function parse(line) {
  const match = LINE.exec(line);
  if (!match) return null;
  const [, indent, dashes, key, colon, value] = match;
  return { column: indent.length + dashes.length, dash: indent.length, isItem: dashes !== '', key: key && key.replace(/^["']|["']$/g, ''), colon: colon !== undefined, value };
}

/** The keys that lead to `column` of the line `number`, outermost first. */
export function pathTo(lines, number, column, isItem) {
  const path = [];
  let limit = column;
  let strict = !isItem;
  for (let at = number - 1; at >= 0 && limit > 0; at--) {
    const line = parse(lines[at]);
    if (!line || !line.key) continue;
    const isParent = strict ? line.column < limit : line.column <= limit && !(line.isItem && line.dash === limit);
    if (isParent && line.colon && !line.value) {
      path.unshift(line.key);
      limit = line.isItem ? line.dash : line.column;
      // A list may stand at the column of its key.
      strict = !line.isItem;
      if (line.isItem) limit = line.dash;
    } else if (line.isItem && line.dash < limit && line.column <= limit) {
      limit = line.dash;
      strict = false;
    }
  }
  return path;
}

/** The value of a field of the metadata, by its line. */
const metadata = (lines, field) => lines.map((line) => line.match(new RegExp(`^ +${field}: *["']?([\\w.-]+)`))).find(Boolean)?.[1];

/** The labels that a selector at this path can match: key to values. */
function labelsAt(path, lines, number, graph) {
  const found = new Map();
  const add = (labels) => {
    for (const [key, value] of Object.entries(labels)) found.set(key, (found.get(key) || new Set()).add(value));
  };
  if (path.includes('namespaceSelector')) {
    graph.namespaces.forEach((one) => add(one.labels));
    return found;
  }
  const own = metadata(lines, 'namespace') || 'default';
  const isSubject = path[0] === 'spec' && path[1] === 'podSelector';
  // A peer beside a namespaceSelector selects pods of other namespaces too.
  const near = lines.slice(Math.max(0, number - 8), number + 8);
  const everywhere = !isSubject && near.some((line) => line.includes('namespaceSelector'));
  for (const workload of graph.workloads) if (everywhere || workload.namespace === own) add(workload.labels);
  return found;
}

const plain = (value) => (/^[A-Za-z][\w./-]*$/.test(value) && !/^(true|false|yes|no|on|off|null|y|n)$/i.test(value) ? value : JSON.stringify(value));

/** What may stand at a place: `{from, options}` as CodeMirror takes it, or null. */
export function complete(text, position, graph) {
  const before = text.slice(0, position);
  const lines = text.split('\n');
  const number = before.split('\n').length - 1;
  const head = before.split('\n').pop();
  const line = parse(head);
  if (!line) return null;
  const word = /[^\s:"'\[\],-][^\s:"'\[\],]*$/.exec(head)?.[0] ?? '';
  const from = position - word.length;
  const path = pathTo(lines, number, line.column, line.isItem);
  const last = path[path.length - 1];
  const values = (list, type = 'enum', detail) => ({ from, options: list.map((label) => ({ label: String(label), type, detail })) });

  if (line.colon) {
    if (last === 'matchLabels') {
      const known = labelsAt(path, lines, number, graph).get(line.key);
      return known ? values([...known].map(plain), 'constant') : null;
    }
    switch (line.key) {
      case 'apiVersion': return values(['networking.k8s.io/v1']);
      case 'kind': return values(['NetworkPolicy']);
      case 'namespace': return values(graph.namespaces.map((one) => one.name), 'namespace');
      case 'protocol': return values(['TCP', 'UDP', 'SCTP']);
      case 'operator': return values(['In', 'NotIn', 'Exists', 'DoesNotExist']);
      case 'policyTypes': return values(['[Ingress]', '[Egress]', '[Ingress, Egress]']);
      case 'key': return values([...labelsAt(path, lines, number, graph).keys()], 'property');
      case 'port': return { from, options: portsOf(graph) };
      case 'cidr': return values(['10.0.0.0/8', '0.0.0.0/0', '::/0']);
      default: return null;
    }
  }
  if (last === 'policyTypes') return values(['Ingress', 'Egress']);
  if (last === 'values') {
    const key = lines.slice(Math.max(0, number - 8), number).reverse().map((one) => one.match(/\bkey: *(\S+)/)?.[1]).find(Boolean);
    const known = labelsAt(path, lines, number, graph).get(key);
    return known ? values([...known].map(plain), 'constant') : null;
  }
  if (last === 'matchLabels') {
    const labels = labelsAt(path, lines, number, graph);
    const options = [...labels].map(([label, known]) => ({ label, apply: `${label}: `, type: 'property', detail: [...known].slice(0, 3).join(', ') }));
    return { from, options };
  }
  const fields = path.reduce((known, key) => known?.[key], FIELDS);
  if (!fields) return null;
  // What an object has already is of no use again. Deeper inside it is hard to say where an object ends.
  const written = path.length ? [] : lines.map((one) => one.match(/^(\w+):/)?.[1]);
  const options = Object.keys(fields).filter((label) => !written.includes(label)).map((label) => ({ label, apply: `${label}: `, type: 'keyword' }));
  return { from, options };
}

/** The ports that pods declare, with who declares them. */
function portsOf(graph) {
  const ports = new Map();
  for (const workload of graph.workloads) {
    for (const { port, name } of workload.ports) {
      for (const label of name ? [String(port), name] : [String(port)]) {
        ports.set(label, (ports.get(label) || new Set()).add(workload.name));
      }
    }
  }
  return [...ports].map(([label, who]) => ({ label, type: 'constant', detail: [...who].slice(0, 3).join(', ') }));
}
