// The matrix, the list of policies, the nodes, and the drops.
import { useEffect, useMemo, useRef, useState } from 'preact/hooks';
import { get } from './api.js';
import { fullName, includes, isAddress, matches, openEdge, pods, ports, shortPorts, workloadMatches } from './model.js';

/** A larger matrix would be slow, and nobody reads it. */
const MOST_ROWS = 120;

export function Matrix({ graph, search, comparison, onPair }) {
  const [port, setPort] = useState('');
  const table = useRef();
  const [cell, setCell] = useState([0, 0]);
  const found = graph.workloads.map((workload, at) => ({ workload, at })).filter(({ workload }) => !search || workloadMatches(search, workload));
  const ends = found.slice(0, MOST_ROWS);
  const edges = useMemo(() => new Map(graph.edges.map((edge) => [`${edge.from} ${edge.to}`, edge])), [graph]);
  const known = useMemo(() => {
    const declared = graph.workloads.flatMap((one) => one.ports.map((port) => `${port.port}/${port.protocol}`));
    const allowed = graph.edges.flatMap((edge) => edge.ports).filter((entry) => /^\d+\//.test(entry));
    return [...new Set([...declared, ...allowed])].sort((a, b) => parseInt(a, 10) - parseInt(b, 10));
  }, [graph]);
  const changes = useMemo(() => new Map((comparison?.changes ?? []).map((change) => [`${change.from} ${change.to}`, change])), [comparison]);
  const read = (from, to) => {
    const edge = edges.get(`${from.at} ${to.at}`) ?? openEdge(graph, from.at, to.at);
    const change = changes.get(`${from.workload.id} ${to.workload.id}`);
    const mark = change ? (change.opened.length ? ' opens' : ' closes') : '';
    if (from.at === to.at && from.workload.count <= 1) return { kind: 'self', text: '', says: 'itself' };
    if (isAddress(from.workload) && isAddress(to.workload)) return { kind: 'self', text: '', says: 'unknown' };
    const says = edge ? ports(edge) : 'nothing';
    if (!edge) return { kind: `none${mark}`, text: '✕', says };
    if (port) {
      if (edge.all || includes(edge.ports, port)) return { kind: `all${mark}`, text: '●', says: 'allowed' };
      if (includes(edge.partly, port)) return { kind: `some${mark}`, text: '◐', says: 'allowed for some pods' };
      return { kind: `none${mark}`, text: '✕', says: 'denied' };
    }
    if (edge.all) return { kind: `all${edge.open ? ' open' : ''}${mark}`, text: '●', says };
    return { kind: `some${mark}`, text: shortPorts(edge) || '◐', says };
  };
  const keys = (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const clamp = (value) => Math.min(Math.max(value, 0), ends.length - 1);
    const next = [clamp(cell[0] + step[0]), clamp(cell[1] + step[1])];
    setCell(next);
    table.current.querySelector(`[data-cell="${next.join(' ')}"]`)?.focus();
  };
  return (
    <div class="matrix">
      <div class="tools">
        <label>Port <select value={port} onChange={(event) => setPort(event.target.value)}><option value="">every one</option>{known.map((name) => <option key={name}>{name}</option>)}</select></label>
        <span class="muted">Rows send, columns receive. ● all traffic passes (grey: because nothing forbids it), ✕ nothing passes, else what passes.</span>
      </div>
      {found.length > ends.length && <p class="note">{found.length} workloads: the first {ends.length} are shown. Search for a namespace, a name or a label.</p>}
      <div class="scroll">
        <table ref={table} onKeyDown={keys}>
          <caption class="unseen">Who may talk to whom</caption>
          <thead>
            <tr><th scope="col"><span class="unseen">Sender</span></th>{ends.map((to) => <th key={to.at} scope="col"><span>{fullName(to.workload)}</span></th>)}</tr>
          </thead>
          <tbody>
            {ends.map((from, row) => (
              <tr key={from.at}>
                <th scope="row">{fullName(from.workload)}</th>
                {ends.map((to, column) => {
                  const { kind, text, says } = read(from, to);
                  const isCurrent = cell[0] === row && cell[1] === column;
                  return (
                    <td key={to.at} class={kind}>
                      {kind !== 'self' && (
                        <button tabIndex={isCurrent ? 0 : -1} data-cell={`${row} ${column}`} title={`${fullName(from.workload)} → ${fullName(to.workload)}: ${says}`}
                          aria-label={`${fullName(from.workload)} to ${fullName(to.workload)}: ${says}`} onFocus={() => setCell([row, column])} onClick={() => onPair(from.at, to.at)}>{text}</button>
                      )}
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </div>
  );
}

const rules = (count) => (count === null ? '–' : count === 0 ? 'denies all' : `${count} ${count === 1 ? 'rule' : 'rules'}`);

export function PolicyList({ version, search, selected, writable, onPolicy, onNew }) {
  const [policies, setPolicies] = useState(null);
  const [failure, setFailure] = useState(null);
  useEffect(() => {
    get('policies').then((rows) => [setPolicies(rows), setFailure(null)], setFailure);
  }, [version]);
  if (failure) return <p class="problem" role="alert">{failure.message}</p>;
  if (!policies) return <p class="empty">Reading…</p>;
  const found = policies.filter((row) => !search || matches(search, row.policy, row.selector, row.place ?? '', ...row.pods));
  if (!policies.length) {
    return (
      <div class="empty">
        <p>There is no policy: every pod may talk to every other.</p>
        {writable && <button class="primary" onClick={onNew}>Write the first policy</button>}
      </div>
    );
  }
  const hasPlaces = policies.some((row) => row.place);
  return (
    <div class="scroll">
      <table class="list">
        <caption class="unseen">Policies and the pods that they select</caption>
        <thead><tr><th scope="col">Policy</th><th scope="col">Selects pods</th><th scope="col">Ingress</th><th scope="col">Egress</th><th scope="col">Pods</th>{hasPlaces && <th scope="col">File</th>}</tr></thead>
        <tbody>
          {found.map((row) => (
            <tr key={row.policy} class={row.policy === selected ? 'chosen' : ''}>
              <td><button class="link" onClick={() => onPolicy(row.policy)}>{row.policy}</button>{row.problem && <div class="problem">{row.problem}</div>}</td>
              <td class="mono">{row.selector === '<everything>' ? <span class="muted">all in {row.namespace}</span> : row.selector}</td>
              <td>{rules(row.ingress)}</td>
              <td>{rules(row.egress)}</td>
              <td>{row.count === 0 ? <span class="warning">none</span> : <details><summary>{pods(row.count)}</summary>{row.pods.map((pod) => <div key={pod} class="mono">{pod}</div>)}{row.count > row.pods.length && <div>and {row.count - row.pods.length} more</div>}</details>}</td>
              {hasPlaces && <td class="mono muted">{row.place}</td>}
            </tr>
          ))}
        </tbody>
      </table>
      {!found.length && <p class="empty">No policy matches “{search}”.</p>}
    </div>
  );
}

/** Asks again every few seconds while it is shown. */
function usePolled(path, seconds) {
  const [state, setState] = useState({ value: undefined, failure: null });
  useEffect(() => {
    let stale = false;
    let timer;
    const ask = async () => {
      try {
        const value = await get(path);
        if (!stale) setState({ value, failure: null });
      } catch (failure) {
        if (!stale) setState((before) => ({ ...before, failure }));
      }
      if (!stale) timer = setTimeout(ask, seconds * 1000);
    };
    ask();
    return () => {
      stale = true;
      clearTimeout(timer);
    };
  }, [path]);
  return state;
}

export function Nodes({ search }) {
  const { value, failure } = usePolled('nodes', 5);
  if (failure) return <p class="problem" role="alert">{failure.message}</p>;
  if (value === undefined) return <p class="empty">Asking…</p>;
  if (value === null) return <p class="empty">A folder has no nodes. With a kubeconfig this shows the daemon of every node.</p>;
  if (!value.length) return <p class="empty">No pod has the label app.kubernetes.io/name=towpath: is towpath installed in this cluster?</p>;
  const found = value.filter((row) => !search || matches(search, row.node, row.pod, row.reason));
  const wrong = value.filter((row) => !row.ready).length;
  return (
    <div class="scroll">
      <p class="note">{wrong ? <b>{wrong} of {value.length} not ready</b> : `All ${value.length} ready`}</p>
      <table class="list">
        <caption class="unseen">Health of the nodes</caption>
        <thead><tr><th scope="col">Node</th><th scope="col">State</th><th scope="col">Since</th><th scope="col">What is wrong</th><th scope="col">Pod</th></tr></thead>
        <tbody>
          {found.map((row) => (
            <tr key={row.node + row.pod}>
              <td>{row.node}</td><td class={row.ready ? '' : 'warning'}>{row.ready ? 'ready' : 'not ready'}</td><td class="mono">{row.since}</td><td>{row.reason}</td><td class="mono muted">{row.pod}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** How many drops are listed, the latest first. */
const MOST_DROPS = 500;

const clock = (time) => time.replace(/^.*T/, '').replace(/\.\d+Z?$/, '').replace('Z', '');

function End({ end, graph, onSelect }) {
  const name = end.pod ?? (end.node ? `node ${end.node}` : end.address ?? 'unknown');
  const at = end.pod ? graph.workloads.findIndex((one) => one.pods.includes(end.pod)) : -1;
  return <span title={[end.address, end.workload].filter(Boolean).join(', ')}>{at >= 0 ? <button class="link" onClick={() => onSelect(at)}>{name}</button> : name}</span>;
}

/** What the daemon of this node has denied, the latest first. */
export function Drops({ graph, search, onSelect }) {
  const { value, failure } = usePolled('drops', 2);
  if (failure) return <p class="problem" role="alert">{failure.message}</p>;
  if (value === undefined) return <p class="empty">Asking…</p>;
  if (value === null) return <p class="empty">Nothing here knows what was dropped. The page of a node’s daemon shows the drops of that node.</p>;
  const rows = [...value.records].reverse();
  const found = rows.filter((row) => !search || matches(search, row.from.pod ?? '', row.to.pod ?? '', row.from.address ?? '', row.to.address ?? '', `${row.port}/${row.protocol}`, row.kind, row.reason, ...row.policies));
  return (
    <div class="scroll">
      {value.off && <p class="problem">Nothing is recorded: {value.off}</p>}
      {!rows.length && !value.off && <p class="empty">Nothing was denied on {value.node} since the daemon started.</p>}
      {rows.length > 0 && (
        <table class="list">
          <caption class="unseen">Denied packets on {value.node}, the latest first</caption>
          <thead><tr><th scope="col">Last</th><th scope="col">From</th><th scope="col">To</th><th scope="col">Port</th><th scope="col">Packets seen</th><th scope="col">Why</th></tr></thead>
          <tbody>
            {found.slice(0, MOST_DROPS).map((row) => (
              <tr key={row.id}>
                <td class="mono" title={row.last}>{clock(row.last)}</td>
                <td><End end={row.from} graph={graph} onSelect={onSelect} /></td>
                <td><End end={row.to} graph={graph} onSelect={onSelect} /></td>
                <td class="mono">{row.port ? `${row.port}/${row.protocol}` : row.protocol}</td>
                <td>{row.count}</td>
                <td>{row.reason}{row.note && <div class="muted">{row.note}</div>}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {found.length > MOST_DROPS && <p class="note">{found.length - MOST_DROPS} older ones are not listed: search for a pod, a port or a policy.</p>}
    </div>
  );
}
