// Where everything stands in the graph: workloads within their namespace, and namespaces beside each other. dagre
// places what is connected; the rest follows in rows, so that a cluster without arrows is no endless column.
import dagre from '@dagrejs/dagre';

export const NODE_HEIGHT = 26;
const CHARACTER = 6.7;
const TITLE = 22;
const PADDING = 12;

const measure = (text) => Math.ceil(text.length * CHARACTER);

/** How large a layout is on a screen: smaller is more legible. */
const extent = ({ width, height }) => Math.max(width / 1.6, height);

/** Boxes in rows, the first of them at `top`. */
function rows(boxes, { gap, least, top = 0, width = 0 }) {
  const placed = new Map();
  const area = boxes.reduce((sum, box) => sum + (box.width + gap) * (box.height + gap), 0);
  const row = Math.max(width, least, Math.sqrt(area * 1.8), ...boxes.map((box) => box.width));
  let [x, y, tallest, widest] = [0, top, 0, width];
  for (const box of boxes) {
    if (x > 0 && x + box.width > row) [x, y, tallest] = [0, y + tallest + gap, 0];
    placed.set(box.id, { x, y });
    widest = Math.max(widest, x + box.width);
    tallest = Math.max(tallest, box.height);
    x += box.width + gap;
  }
  return { placed, width: widest, height: boxes.length ? y + tallest : Math.max(0, top - gap) };
}

/** Boxes in the order of their arrows. */
function ranked(boxes, edges, { gap, ranks }, rankdir) {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir, nodesep: gap, ranksep: ranks });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const box of boxes) graph.setNode(box.id, { width: box.width, height: box.height });
  for (const [from, to] of edges) graph.setEdge(from, to);
  dagre.layout(graph);
  const placed = new Map(graph.nodes().map((id) => {
    const node = graph.node(id);
    return [id, { x: node.x - node.width / 2, y: node.y - node.height / 2 }];
  }));
  return { placed, width: graph.graph().width, height: graph.graph().height };
}

/** Places boxes; returns their corners, and the size of the whole. A long chain is easier to read in rows. */
function place(boxes, edges, options) {
  const connected = new Set(edges.flat());
  const [tied, rest] = [boxes.filter((box) => connected.has(box.id)), boxes.filter((box) => !connected.has(box.id))];
  if (!tied.length) return rows(boxes, options);
  const best = ['LR', 'TB'].map((direction) => ranked(tied, edges, options, direction)).sort((a, b) => extent(a) - extent(b))[0];
  const flat = rows(boxes, { ...options, gap: options.gap * 1.2 });
  if (extent(flat) * 1.8 < extent(best)) return flat;
  const below = rows(rest, { ...options, top: best.height + options.gap, width: best.width });
  for (const [id, at] of best.placed) below.placed.set(id, at);
  return below;
}

/** The label of a workload's box. */
export const labelOf = (workload) => (workload.count > 1 ? `${workload.name} ×${workload.count}` : workload.name);

/**
 * The boxes of namespaces and workloads. A namespace that is not in `expanded` is one box without its workloads.
 * Returns `namespaces` and `nodes`; `nodeOf` gives the box that shows a workload.
 */
export function layout(graph, expanded) {
  const groups = new Map(graph.namespaces.map((one) => [one.name, []]));
  graph.workloads.forEach((workload, at) => {
    const key = workload.namespace || `ip:${workload.name}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(at);
  });
  // Edges that a policy allows say what belongs together; those that nothing forbids would tie all to all.
  const ties = graph.edges.filter((edge) => !edge.open && edge.from !== edge.to);
  const home = (at) => graph.workloads[at].namespace || `ip:${graph.workloads[at].name}`;
  const boxes = [];
  const inner = new Map();
  for (const [name, members] of groups) {
    const first = graph.workloads[members[0]];
    if (!members.length) continue;
    if (name.startsWith('ip:')) {
      boxes.push({ id: name, width: measure(first.name) + 24, height: NODE_HEIGHT });
      continue;
    }
    const title = measure(name) + 60;
    if (!expanded.has(name)) {
      boxes.push({ id: name, width: title + 40, height: NODE_HEIGHT + 4 });
      continue;
    }
    const nodes = members.map((at) => ({ id: String(at), width: measure(labelOf(graph.workloads[at])) + 30, height: NODE_HEIGHT }));
    const own = ties.filter((edge) => home(edge.from) === name && home(edge.to) === name);
    const edges = own.map((edge) => [String(edge.from), String(edge.to)]);
    const within = place(nodes, edges, { gap: 14, ranks: 70, least: 150 });
    inner.set(name, { nodes, within });
    boxes.push({
      id: name,
      width: Math.max(within.width + 2 * PADDING, title),
      height: within.height + TITLE + 2 * PADDING,
    });
  }
  const pairs = new Set();
  for (const edge of ties) if (home(edge.from) !== home(edge.to)) pairs.add(JSON.stringify([home(edge.from), home(edge.to)]));
  const outer = place(boxes, [...pairs].map((pair) => JSON.parse(pair)), { gap: 56, ranks: 110, least: 420 });

  const namespaces = [];
  const nodes = [];
  const nodeOf = new Map();
  for (const box of boxes) {
    const { x, y } = outer.placed.get(box.id);
    const members = groups.get(box.id);
    if (inner.has(box.id)) {
      namespaces.push({ name: box.id, x, y, width: box.width, height: box.height });
      const { nodes: own, within } = inner.get(box.id);
      for (const node of own) {
        const at = within.placed.get(node.id);
        const member = Number(node.id);
        nodeOf.set(member, nodes.length);
        nodes.push({
          key: graph.workloads[member].id, members: [member], x: x + PADDING + at.x, y: y + TITLE + PADDING + at.y,
          width: node.width, height: node.height,
        });
      }
    } else {
      const isNamespace = !box.id.startsWith('ip:');
      for (const member of members) nodeOf.set(member, nodes.length);
      nodes.push({
        key: isNamespace ? `ns:${box.id}` : graph.workloads[members[0]].id, namespace: isNamespace ? box.id : null, members,
        x, y, width: box.width, height: box.height,
      });
    }
  }
  return { namespaces, nodes, nodeOf, width: outer.width, height: outer.height };
}

/** The point where the line from the centre of a box to another point leaves the box. */
function border(box, x, y) {
  const [cx, cy] = [box.x + box.width / 2, box.y + box.height / 2];
  const [dx, dy] = [x - cx, y - cy];
  const scale = Math.min(
    dx ? box.width / 2 / Math.abs(dx) : Infinity,
    dy ? box.height / 2 / Math.abs(dy) : Infinity,
  );
  return Number.isFinite(scale) ? [cx + dx * scale, cy + dy * scale] : [cx, cy];
}

/** The path of an arrow between two boxes, bent to one side so that the way back has its own, and its middle. */
export function arrow(from, to) {
  const centre = (box) => [box.x + box.width / 2, box.y + box.height / 2];
  const [[ax, ay], [bx, by]] = [centre(from), centre(to)];
  const length = Math.hypot(bx - ax, by - ay) || 1;
  const bend = Math.min(40, 10 + length * 0.08);
  const [mx, my] = [(ax + bx) / 2 - ((by - ay) / length) * bend, (ay + by) / 2 + ((bx - ax) / length) * bend];
  const [sx, sy] = border(from, mx, my);
  const [ex, ey] = border(to, mx, my);
  const round = (value) => Math.round(value * 10) / 10;
  return {
    path: `M${round(sx)} ${round(sy)}Q${round(mx)} ${round(my)} ${round(ex)} ${round(ey)}`,
    x: (sx + 2 * mx + ex) / 4,
    y: (sy + 2 * my + ey) / 4,
  };
}
