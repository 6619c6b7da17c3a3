// What the views derive from the graph.

/** Labels that say which copy of a pod it is, and that no policy should select by. */
const VOLATILE = [
  'pod-template-hash', 'controller-revision-hash', 'pod-template-generation', 'statefulset.kubernetes.io/pod-name',
  'apps.kubernetes.io/pod-index', 'batch.kubernetes.io/job-completion-index', 'controller-uid',
  'batch.kubernetes.io/controller-uid',
];

/** Labels by which a workload is usually told from others, best first. */
const PREFERRED = ['app', 'app.kubernetes.io/name', 'k8s-app', 'role', 'app.kubernetes.io/component', 'name'];

export const isAddress = (workload) => workload.kind === 'Addresses';

export const fullName = (workload) =>
  isAddress(workload) ? workload.name : `${workload.namespace}/${workload.name}`;

/** Everything that passes between two workloads, although no policy says so: the server leaves these out if they are many. */
export function openEdge(graph, from, to) {
  const [sender, receiver] = [graph.workloads[from], graph.workloads[to]];
  if (!graph.open_left_out || graph.incomplete || (from === to && sender.count < 2) || (isAddress(sender) && isAddress(receiver))) return undefined;
  const free = (isolation) => !isolation.isolated && !isolation.partly;
  return free(sender.egress) && free(receiver.ingress) ? { from, to, all: true, open: true, ports: [], words: [], partly: [], partly_words: [] } : undefined;
}

export const edgeBetween = (graph, from, to) => graph.edges.find((one) => one.from === from && one.to === to) ?? openEdge(graph, from, to);

/** The ports of an edge as one text. */
export function ports(edge) {
  if (edge.all) return 'all traffic';
  const some = edge.partly.length ? [`for some pods ${edge.partly_words.join(', ')}`] : [];
  return [...edge.words, ...some].join(', ');
}

/** A short form of it for an arrow. */
export function shortPorts(edge) {
  if (edge.all) return '';
  const words = edge.words.length ? edge.words : edge.partly_words;
  if (words.join() === 'all traffic') return '';
  return words.length > 3 ? `${words.slice(0, 2).join(', ')} +${words.length - 2}` : words.join(', ');
}

/** Whether a port such as 80/TCP is among entries such as 1-1024/TCP. */
export function includes(entries, port) {
  const [number, protocol] = port.split('/');
  return entries.some((entry) => {
    const [range, of] = entry.split('/');
    const [first, last = first] = range.split('-').map(Number);
    return of === protocol && first <= Number(number) && Number(number) <= last;
  });
}

/** The port to ask about first, between two workloads. */
export function firstPort(from, to, edge) {
  const entries = edge && !edge.all ? [...edge.ports, ...edge.partly] : [];
  const declared = to.ports.map((port) => `${port.port}/${port.protocol}`);
  const first = entries.find((entry) => entry.includes('/'))?.replace(/^(\d+)-\d+/, '$1');
  return declared.find((port) => includes(entries, port)) ?? first ?? declared[0] ?? '80/TCP';
}

/** How many pods, in words. */
export const pods = (count) => `${count} ${count === 1 ? 'pod' : 'pods'}`;

/** The fewest labels that select a workload and no other of its namespace. */
export function selectorOf(workload, graph) {
  const labels = Object.entries(workload.labels).filter(([key]) => !VOLATILE.includes(key));
  const others = graph.workloads.filter((one) => one.namespace === workload.namespace && one.id !== workload.id);
  const rank = ([key]) => (PREFERRED.indexOf(key) + PREFERRED.length + 1) % (PREFERRED.length + 1);
  const sorted = [...labels].sort((a, b) => rank(a) - rank(b));
  const unique = ([key, value]) => others.every((other) => other.labels[key] !== value);
  const one = sorted.find(unique);
  return Object.fromEntries(one ? [one] : labels);
}

/** Whether a text matches what is searched for: every word of it. */
export function matches(search, ...texts) {
  const text = texts.join(' ').toLowerCase();
  return search.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

export const workloadMatches = (search, workload) =>
  matches(search, fullName(workload), workload.kind, ...workload.pods, ...Object.entries(workload.labels).map((l) => l.join('=')),
    ...workload.ports.map((port) => `${port.port}/${port.protocol} ${port.name || ''}`));

/** The edges of one workload: who may send to it, and to whom it may send. */
export function edgesOf(graph, at) {
  const others = graph.workloads.map((_, other) => other).filter((other) => other !== at);
  const known = new Map(graph.edges.filter((edge) => edge.from === at || edge.to === at).map((edge) => [`${edge.from} ${edge.to}`, edge]));
  const between = (from, to) => known.get(`${from} ${to}`) ?? openEdge(graph, from, to);
  return {
    incoming: others.map((other) => between(other, at)).filter(Boolean),
    outgoing: others.map((other) => between(at, other)).filter(Boolean),
    within: between(at, at),
  };
}
