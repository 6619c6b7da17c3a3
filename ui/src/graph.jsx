// The graph: workloads within their namespaces, and arrows for who may talk to whom.
import { useEffect, useMemo, useRef, useState } from 'preact/hooks';
import { arrow, labelOf, layout } from './layout.js';
import { edgesOf, fullName, isAddress, pods, shortPorts, workloadMatches } from './model.js';

/** With more workloads than this, namespaces begin closed. */
const MANY = 45;
/** With more arrows than this, those that nothing forbids are shown for what is selected only. */
const CROWD = 60;

const plural = (count, word) => `${count} ${word}${count === 1 ? '' : 's'}`;

/** The arrows between the boxes that are shown: those of several workloads in one box become one. */
function merge(graph, nodeOf, comparison, selected) {
  const merged = new Map();
  const of = (from, to) => {
    const key = `${from} ${to}`;
    if (!merged.has(key)) merged.set(key, { key, from, to, edges: [], opened: new Set(), closed: new Set() });
    return merged.get(key);
  };
  const add = (edge) => {
    const [from, to] = [nodeOf.get(edge.from), nodeOf.get(edge.to)];
    if (from !== to) of(from, to).edges.push(edge);
  };
  graph.edges.forEach(add);
  if (graph.open_left_out && selected !== null) {
    const { incoming, outgoing } = edgesOf(graph, selected);
    [...incoming, ...outgoing].filter((edge) => edge.open).forEach(add);
  }
  const at = new Map(graph.workloads.map((workload, index) => [workload.id, index]));
  for (const change of comparison?.changes ?? []) {
    const [from, to] = [nodeOf.get(at.get(change.from)), nodeOf.get(at.get(change.to))];
    if (from === undefined || to === undefined || from === to) continue;
    change.opened.forEach((port) => of(from, to).opened.add(port));
    change.closed.forEach((port) => of(from, to).closed.add(port));
  }
  return [...merged.values()].map((one) => ({ ...one, open: one.edges.every((edge) => edge.open) }));
}

/** What an arrow would open or close; all traffic needs no words. */
function change(sign, parts) {
  const text = [...parts].slice(0, 3).join(', ');
  return text === 'all traffic' ? '' : `${sign} ${text}`;
}

function describe(graph, node, expanded) {
  if (node.namespace) {
    const count = node.members.reduce((sum, at) => sum + graph.workloads[at].count, 0);
    return `Namespace ${node.namespace}, ${plural(node.members.length, 'workload')}, ${pods(count)}, ${expanded ? 'open' : 'closed; Enter opens it'}`;
  }
  const workload = graph.workloads[node.members[0]];
  if (isAddress(workload)) return `Addresses ${workload.name}`;
  const state = (isolation) => (isolation.isolated ? 'isolated' : isolation.partly ? 'partly isolated' : 'open');
  return `${workload.kind} ${fullName(workload)}, ${pods(workload.count)}, ingress ${state(workload.ingress)}, egress ${state(workload.egress)}`;
}

export function GraphView({ graph, selected, pair, search, comparison, drawing, drawFrom, onSelect, onPair, onDraw }) {
  const host = useRef();
  const [expanded, setExpanded] = useState(null);
  const [showAll, setShowAll] = useState(null);
  const [view, setView] = useState(null);
  const [current, setCurrent] = useState(0);
  const [hovered, setHovered] = useState(null);
  const [source, setSource] = useState(null);
  const [pointer, setPointer] = useState(null);
  const drag = useRef(null);

  const names = graph.namespaces.map((one) => one.name).join(' ');
  const open = expanded ?? new Set(graph.workloads.filter((one) => !isAddress(one)).length > MANY ? [] : graph.namespaces.map((one) => one.name));
  const shape = useMemo(
    () => layout(graph, open),
    [names, [...open].join(' '), JSON.stringify(graph.workloads.map((one) => [one.id, one.count])), JSON.stringify(graph.edges.map((e) => [e.from, e.to, e.open]))],
  );
  const arrows = useMemo(() => merge(graph, shape.nodeOf, comparison, selected), [graph, shape, comparison, selected]);
  const crowded = arrows.length > CROWD;
  const all = showAll ?? !crowded;
  const chosenNode = selected !== null ? shape.nodeOf.get(selected) ?? null : null;
  const focus = hovered ?? chosenNode;
  const found = search ? new Set(shape.nodes.flatMap((node, at) => (node.members.some((one) => workloadMatches(search, graph.workloads[one])) ? [at] : []))) : null;

  const isShown = (one) => {
    if (one.opened.size || one.closed.size) return true;
    if (!one.edges.length) return false;
    return all || !one.open || one.from === chosenNode || one.to === chosenNode;
  };
  const shown = arrows.filter(isShown);
  const labelled = shown.length <= 45;

  const fit = () => {
    if (!host.current) return;
    const { clientWidth, clientHeight } = host.current;
    const [width, height] = [shape.width + 48, shape.height + 48];
    const scale = Math.min(clientWidth / width, clientHeight / height, 1.35);
    setView({ x: -24 - Math.max(0, clientWidth / scale - width) / 2, y: -24 - Math.max(0, clientHeight / scale - height) / 2, scale });
  };
  useEffect(fit, [shape.width, shape.height]);
  useEffect(() => {
    const observer = new ResizeObserver(fit);
    observer.observe(host.current);
    return () => observer.disconnect();
  }, [shape]);
  // Passive listeners could not keep the page from scrolling.
  useEffect(() => {
    const element = host.current;
    const wheel = (event) => {
      event.preventDefault();
      const box = element.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY * 0.0015), event.clientX - box.left, event.clientY - box.top);
    };
    element.addEventListener('wheel', wheel, { passive: false });
    return () => element.removeEventListener('wheel', wheel);
  }, []);

  const zoom = (factor, px = host.current.clientWidth / 2, py = host.current.clientHeight / 2) =>
    setView((before) => {
      const scale = Math.min(3, Math.max(0.1, before.scale * factor));
      return { scale, x: before.x + px / before.scale - px / scale, y: before.y + py / before.scale - py / scale };
    });

  const toggle = (name) => {
    const next = new Set(open);
    if (!next.delete(name)) next.add(name);
    setExpanded(next);
  };
  const choose = (at) => {
    const node = shape.nodes[at];
    setCurrent(at);
    if (drawing) {
      if (node.namespace) return toggle(node.namespace);
      if (source === null) return setSource(node.members[0]);
      const from = source;
      setSource(null);
      setPointer(null);
      if (from !== node.members[0]) onDraw(from, node.members[0]);
      return undefined;
    }
    if (node.namespace) return toggle(node.namespace);
    return onSelect(node.members[0]);
  };
  useEffect(() => {
    if (!drawing) {
      setSource(null);
      setPointer(null);
    }
  }, [drawing]);
  useEffect(() => {
    if (drawFrom) setSource(graph.workloads.findIndex((one) => one.id === drawFrom));
  }, [drawFrom]);

  /** Arrow keys go to the nearest box in that direction: one stop for the tab key, however many boxes there are. */
  const keys = (event) => {
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const direction = directions[event.key];
    if (event.key === 'Escape') {
      setSource(null);
      return onSelect(null);
    }
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      return choose(current);
    }
    if (!direction) return undefined;
    event.preventDefault();
    const centre = (node) => [node.x + node.width / 2, node.y + node.height / 2];
    const [cx, cy] = centre(shape.nodes[current]);
    let [best, distance] = [null, Infinity];
    shape.nodes.forEach((node, at) => {
      const [x, y] = centre(node);
      const along = (x - cx) * direction[0] + (y - cy) * direction[1];
      const across = Math.abs((x - cx) * direction[1]) + Math.abs((y - cy) * direction[0]);
      if (at !== current && along > 1 && along + 2 * across < distance) [best, distance] = [at, along + 2 * across];
    });
    if (best !== null) {
      setCurrent(best);
      host.current.querySelector(`[data-at="${best}"]`)?.focus();
    }
    return undefined;
  };

  const toGraph = (event) => {
    const box = host.current.getBoundingClientRect();
    return { x: view.x + (event.clientX - box.left) / view.scale, y: view.y + (event.clientY - box.top) / view.scale };
  };
  const down = (event) => {
    if (event.button !== 0 || event.target.closest('[data-at]')) return;
    drag.current = { x: event.clientX, y: event.clientY, view };
    host.current.setPointerCapture(event.pointerId);
  };
  const move = (event) => {
    if (drawing && source !== null) setPointer(toGraph(event));
    if (!drag.current) return;
    const { x, y, view: before } = drag.current;
    setView({ ...before, x: before.x - (event.clientX - x) / before.scale, y: before.y - (event.clientY - y) / before.scale });
  };
  const up = (event) => {
    const start = drag.current;
    drag.current = null;
    if (start && Math.hypot(event.clientX - start.x, event.clientY - start.y) < 3 && !event.target.closest('[data-edge]')) onSelect(null);
  };
  // In drawing, pressing on one box and letting go on another is an arrow as well.
  const nodeDown = (at) => {
    if (drawing && !shape.nodes[at].namespace && source === null) drag.current = null;
    if (drawing) host.current.dataset.from = at;
  };
  const nodeUp = (at) => {
    const from = host.current.dataset.from;
    delete host.current.dataset.from;
    if (drawing && from !== undefined && Number(from) !== at && !shape.nodes[at].namespace && !shape.nodes[from].namespace) {
      setSource(null);
      setPointer(null);
      onDraw(shape.nodes[from].members[0], shape.nodes[at].members[0]);
    }
  };

  const isDim = (at) => (found ? !found.has(at) : focus !== null && at !== focus && !shown.some((one) => (one.from === focus && one.to === at) || (one.to === focus && one.from === at)));
  const closedNames = graph.namespaces.filter((one) => graph.workloads.some((w) => w.namespace === one.name));
  return (
    <div class="graph">
      <div class="tools" role="toolbar" aria-label="Graph">
        {!graph.open_left_out && <label><input type="checkbox" checked={all} onChange={(event) => setShowAll(event.target.checked)} /> what nothing forbids</label>}
        {closedNames.length > 1 && (
          <button class="quiet" onClick={() => setExpanded(open.size ? new Set() : new Set(graph.namespaces.map((one) => one.name)))}>
            {open.size ? 'Close all namespaces' : 'Open all namespaces'}
          </button>
        )}
        <span class="spring" />
        <button class="quiet" onClick={() => zoom(1.25)} aria-label="Zoom in">+</button>
        <button class="quiet" onClick={() => zoom(0.8)} aria-label="Zoom out">−</button>
        <button class="quiet" onClick={fit}>Fit</button>
      </div>
      <div class={`canvas${drawing ? ' drawing' : ''}`} ref={host} onPointerDown={down} onPointerMove={move} onPointerUp={up} onKeyDown={keys}>
        {view && (
          <svg width="100%" height="100%" role="group" aria-label="Who may talk to whom">
            <defs>
              {['plain', 'strong', 'opens', 'closes', 'faint'].map((kind) => (
                <marker key={kind} id={`head-${kind}`} viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse">
                  <path d="M0 0.8L8 4L0 7.2z" class={`head ${kind}`} />
                </marker>
              ))}
            </defs>
            <g transform={`scale(${view.scale}) translate(${-view.x} ${-view.y})`}>
              {shape.namespaces.map((box) => (
                <g key={box.name} class="namespace">
                  <rect x={box.x} y={box.y} width={box.width} height={box.height} rx="4" />
                  <text x={box.x + 12} y={box.y + 18}>{box.name}</text>
                  {graph.workloads.length > MANY && (
                    <text x={box.x + box.width - 18} y={box.y + 18} class="fold" onClick={() => toggle(box.name)} aria-hidden="true">−</text>
                  )}
                </g>
              ))}
              {shown.map((one) => {
                const { path, x, y } = arrow(shape.nodes[one.from], shape.nodes[one.to]);
                const touches = one.from === focus || one.to === focus;
                const isPair = pair && shape.nodeOf.get(pair.from) === one.from && shape.nodeOf.get(pair.to) === one.to;
                const kind = one.opened.size ? 'opens' : one.closed.size ? 'closes' : isPair || touches ? 'strong' : one.open ? 'faint' : 'plain';
                const dim = kind !== 'opens' && kind !== 'closes' && ((focus !== null && !touches) || (found && !(found.has(one.from) || found.has(one.to))));
                const edge = one.edges.length === 1 ? one.edges[0] : null;
                const label = one.opened.size ? change('+', one.opened) : one.closed.size ? change('−', one.closed) : edge && !edge.open && (labelled || touches) ? shortPorts(edge) : '';
                const isSingle = shape.nodes[one.from].members.length === 1 && shape.nodes[one.to].members.length === 1 && !shape.nodes[one.from].namespace && !shape.nodes[one.to].namespace;
                return (
                  <g key={one.key} class={`edge ${kind}${dim ? ' dim' : ''}`} data-edge={one.key} onClick={() => isSingle && onPair(shape.nodes[one.from].members[0], shape.nodes[one.to].members[0])}>
                    <path class="hit" d={path} />
                    <path class="line" d={path} marker-end={`url(#head-${kind})`} />
                    {label && !dim && <text x={x} y={y - 3}>{label}</text>}
                  </g>
                );
              })}
              {shape.nodes.map((node, at) => {
                const workload = node.namespace ? null : graph.workloads[node.members[0]];
                const chosen = selected !== null && node.members.includes(selected) && !node.namespace;
                const classes = ['node', workload ? (isAddress(workload) ? 'address' : '') : 'closed', chosen ? 'chosen' : '', isDim(at) ? 'dim' : '', source !== null && node.members.includes(source) ? 'source' : ''];
                const bar = (isolation, side) => (isolation.isolated || isolation.partly) && (
                  <rect class={`bar ${isolation.partly ? 'partly' : ''}`} x={side === 'left' ? node.x : node.x + node.width - 4} y={node.y} width="4" height={node.height} />
                );
                const text = workload ? labelOf(workload) : node.namespace;
                return (
                  <g key={node.key} class={classes.join(' ')} data-at={at} data-id={node.key} role="button" tabIndex={at === Math.min(current, shape.nodes.length - 1) ? 0 : -1}
                    aria-label={describe(graph, node, false)} aria-pressed={workload ? chosen : undefined} aria-expanded={workload ? undefined : false}
                    onClick={() => choose(at)} onPointerDown={() => nodeDown(at)} onPointerUp={() => nodeUp(at)} onFocus={() => setCurrent(at)}
                    onPointerEnter={() => setHovered(at)} onPointerLeave={() => setHovered(null)}>
                    <rect class="box" x={node.x} y={node.y} width={node.width} height={node.height} rx={workload && isAddress(workload) ? node.height / 2 : 3} />
                    {workload && bar(workload.ingress, 'left')}
                    {workload && bar(workload.egress, 'right')}
                    <text x={node.x + node.width / 2} y={node.y + node.height / 2 + 4}>{text}{!workload && <tspan class="count">{`  ${node.members.length}`}</tspan>}</text>
                  </g>
                );
              })}
              {source !== null && pointer && (
                <path class="drawn" marker-end="url(#head-strong)" d={arrow(shape.nodes[shape.nodeOf.get(source)], { x: pointer.x - 2, y: pointer.y - 2, width: 4, height: 4 }).path} />
              )}
            </g>
          </svg>
        )}
        {graph.workloads.every(isAddress) && <p class="empty">There are no pods yet. Policies can be written already: they will apply to pods that match.</p>}
      </div>
      <div class="legend" aria-hidden="true">
        <span><i class="swatch in" /> isolated for ingress</span>
        <span><i class="swatch out" /> isolated for egress</span>
        <span><i class="stroke plain" /> a policy allows it</span>
        <span><i class="stroke faint" /> nothing forbids it</span>
        {comparison && <span><i class="stroke opens" /> + would open</span>}
        {comparison && <span><i class="stroke closes" /> − would close</span>}
      </div>
    </div>
  );
}
