// Manifests as text: of a stored object, of a drawn arrow, of an empty start.
import { parseDocument, stringify } from 'yaml';
import { isAddress, selectorOf } from './model.js';

const text = (object) => stringify(object, { indentSeq: false, lineWidth: 0 });

/** The text of an object from the API server. */
export function ofObject(object) {
  const { changedBy: _, ...rest } = object;
  return text(rest);
}

export const ofStored = (stored) => stored.text ?? ofObject(stored.object);

/** A start for a new policy: it isolates all pods of a namespace for ingress. */
export function blank(namespace) {
  return text({
    apiVersion: 'networking.k8s.io/v1',
    kind: 'NetworkPolicy',
    metadata: { name: 'default-deny', namespace },
    spec: { podSelector: {}, policyTypes: ['Ingress'] },
  });
}

/** A peer that selects a workload, as seen from a namespace. */
function peer(workload, graph, namespace) {
  if (isAddress(workload)) {
    const cidr = workload.name.includes('/') ? workload.name : '0.0.0.0/0';
    return { ipBlock: { cidr } };
  }
  const labels = selectorOf(workload, graph);
  const podSelector = Object.keys(labels).length ? { matchLabels: labels } : {};
  if (workload.namespace === namespace) return { podSelector };
  return { namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': workload.namespace } }, podSelector };
}

const nameFor = (word) => word.toLowerCase().replace(/[^a-z0-9]+/g, '-').replace(/^-+|-+$/g, '') || 'outside';

/** The policy for an arrow: the receiver lets the sender in, or the sender may send (`direction` egress). */
export function ofArrow(graph, from, to, port, direction = 'ingress') {
  const isIngress = direction === 'ingress';
  const [subject, other] = isIngress ? [to, from] : [from, to];
  const labels = selectorOf(subject, graph);
  const rule = { [isIngress ? 'from' : 'to']: [peer(other, graph, subject.namespace)] };
  const [number, protocol = 'TCP'] = port.split('/');
  if (number) rule.ports = [{ protocol: protocol.toUpperCase(), port: /^\d+$/.test(number) ? Number(number) : number }];
  return text({
    apiVersion: 'networking.k8s.io/v1',
    kind: 'NetworkPolicy',
    metadata: {
      name: `${nameFor(subject.name)}-${isIngress ? 'from' : 'to'}-${nameFor(other.name)}`.slice(0, 63).replace(/-+$/, ''),
      namespace: subject.namespace,
    },
    spec: {
      podSelector: Object.keys(labels).length ? { matchLabels: labels } : {},
      policyTypes: [isIngress ? 'Ingress' : 'Egress'],
      [direction]: [rule],
    },
  });
}

/** A manifest with a JSON patch applied; its comments stay. */
export function patched(manifest, patch) {
  const document = parseDocument(manifest);
  for (const { op, path, value } of patch) {
    const steps = path.split('/').slice(1).map((step) => step.replace(/~1/g, '/').replace(/~0/g, '~'));
    const keys = steps.map((step) => (/^\d+$/.test(step) ? Number(step) : step));
    const parent = keys.slice(0, -1);
    const last = keys[keys.length - 1];
    if (op === 'add' && last === '-') document.addIn(parent, document.createNode(value));
    else if (op === 'add' && typeof last === 'number') document.getIn(parent).items.splice(last, 0, document.createNode(value));
    else if (op === 'add' || op === 'replace') document.setIn(keys, document.createNode(value));
    else if (op === 'remove') document.deleteIn(keys);
  }
  return document.toString({ indentSeq: false, lineWidth: 0 });
}

export const ofManifest = text;
