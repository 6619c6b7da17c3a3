// What is known about the selected workload or pair, beside the graph and the matrix.
import { useEffect, useState } from 'preact/hooks';
import { get } from './api.js';
import { edgeBetween, edgesOf, firstPort, fullName, isAddress, pods, ports } from './model.js';

function Policies({ policies, onPolicy }) {
  return policies.map((policy, at) => (
    <>
      {at > 0 && ', '}
      <button class="link" onClick={() => onPolicy(policy)}>{policy}</button>
    </>
  ));
}

function Direction({ name, isolation, onPolicy }) {
  const state = isolation.isolated ? 'isolated' : isolation.partly ? 'some pods isolated' : 'open: no policy selects it';
  return (
    <tr>
      <th scope="row">{name}</th>
      <td>{state}{isolation.policies.length > 0 && ' by '}<Policies policies={isolation.policies} onPolicy={onPolicy} /></td>
    </tr>
  );
}

function Peers({ title, none, edges, graph, end, onPair }) {
  const [all, setAll] = useState(false);
  const sorted = [...edges].sort((a, b) => Number(a.open) - Number(b.open));
  const shown = all ? sorted : sorted.slice(0, 12);
  return (
    <>
      <h3>{title} <span class="muted">{edges.length}</span></h3>
      {edges.length === 0 && <p class="muted">{none}</p>}
      <ul class="peers">
        {shown.map((edge) => (
          <li key={`${edge.from} ${edge.to}`}>
            <button class="link" onClick={() => onPair(edge.from, edge.to)}>{fullName(graph.workloads[edge[end]])}</button>
            <span class={edge.open ? 'muted' : ''}>{ports(edge)}</span>
          </li>
        ))}
      </ul>
      {edges.length > shown.length && <button class="quiet" onClick={() => setAll(true)}>{edges.length - shown.length} more</button>}
    </>
  );
}

export function WorkloadPanel({ graph, at, writable, onPair, onPolicy, onDrawFrom, onClose }) {
  const workload = graph.workloads[at];
  const { incoming, outgoing, within } = edgesOf(graph, at);
  const labels = Object.entries(workload.labels);
  return (
    <section aria-label="Workload">
      <header>
        <h2>{fullName(workload)}</h2>
        <span class="muted">{isAddress(workload) ? 'addresses' : `${workload.kind}, ${pods(workload.count)}`}</span>
        <button class="quiet" onClick={onClose}>Close</button>
      </header>
      {!isAddress(workload) && (
        <table class="facts">
          <tbody>
            <Direction name="Ingress" isolation={workload.ingress} onPolicy={onPolicy} />
            <Direction name="Egress" isolation={workload.egress} onPolicy={onPolicy} />
            {workload.host_network && <tr><th scope="row">Network</th><td>that of its node: no policy applies</td></tr>}
            <tr><th scope="row">Ports</th><td>{workload.ports.map((port) => `${port.port}/${port.protocol}${port.name ? ` (${port.name})` : ''}`).join(', ') || 'none declared'}</td></tr>
            <tr><th scope="row">Labels</th><td class="mono">{labels.map(([key, value]) => <div key={key}>{key}={value}</div>)}{!labels.length && 'none'}</td></tr>
            <tr><th scope="row">Pods</th><td><details><summary>{pods(workload.count)}</summary>{workload.pods.map((pod) => <div key={pod} class="mono">{pod}</div>)}</details></td></tr>
          </tbody>
        </table>
      )}
      <Peers title="May receive from" none="Nobody may connect to it." edges={incoming} graph={graph} end="from" onPair={onPair} />
      <Peers title="May send to" none="It may connect to nobody." edges={outgoing} graph={graph} end="to" onPair={onPair} />
      {workload.count > 1 && <p class="muted">Among its own pods: {within ? ports(within) : 'nothing'}.</p>}
      {writable && <p><button onClick={() => onDrawFrom(at)}>Draw an arrow from here</button></p>}
    </section>
  );
}

/** One pair of pods and a port: the answer of `towpath explain`. */
export function PairPanel({ graph, pair, version, writable, onPolicy, onDraw, onFix, onSelect, onClose }) {
  const [from, to] = [graph.workloads[pair.from], graph.workloads[pair.to]];
  const edge = edgeBetween(graph, pair.from, pair.to);
  const [question, setQuestion] = useState(null);
  const [answer, setAnswer] = useState(null);
  const [failure, setFailure] = useState(null);
  useEffect(() => {
    const other = to.pods.find((pod) => pod !== from.pods[0]) ?? to.pods[0];
    setQuestion({ from: from.pods[0], to: other, port: firstPort(from, to, edge) });
  }, [from.id, to.id]);
  useEffect(() => {
    if (!question) return undefined;
    let stale = false;
    const timer = setTimeout(async () => {
      try {
        const result = await get('explain', question);
        if (!stale) [setAnswer(result), setFailure(null)];
      } catch (error) {
        if (!stale) [setAnswer(null), setFailure(error)];
      }
    }, 120);
    return () => {
      stale = true;
      clearTimeout(timer);
    };
  }, [question, version]);
  if (!question) return null;
  const set = (field) => (event) => setQuestion({ ...question, [field]: event.target.value });
  const involved = answer && [...new Set([...answer.explanation.egress.isolated_by, ...answer.explanation.ingress.isolated_by])];
  const known = [...new Set([...to.ports.map((port) => `${port.port}/${port.protocol}`), ...(edge?.ports ?? []).filter((port) => /^\d+\//.test(port))])];
  return (
    <section aria-label="Pair">
      <header>
        <h2>
          <button class="link" onClick={() => onSelect(pair.from)}>{fullName(from)}</button> → <button class="link" onClick={() => onSelect(pair.to)}>{fullName(to)}</button>
        </h2>
        <button class="quiet" onClick={onClose}>Close</button>
      </header>
      <p>{edge ? <>Passes: <b>{ports(edge)}</b>{edge.open && ', because no policy isolates either end'}</> : <b>Nothing passes.</b>}</p>
      <div class="question">
        {from.pods.length > 1 && <label>From <select value={question.from} onChange={set('from')}>{from.pods.map((pod) => <option key={pod}>{pod}</option>)}</select></label>}
        {to.pods.length > 1 && <label>To <select value={question.to} onChange={set('to')}>{to.pods.map((pod) => <option key={pod}>{pod}</option>)}</select></label>}
        <label>Port <input value={question.port} onInput={set('port')} list="ports" size="10" spellcheck={false} /></label>
        <datalist id="ports">{known.map((port) => <option key={port} value={port} />)}</datalist>
      </div>
      <div aria-live="polite">
        {failure && <p class="problem" role="alert">{failure.message}</p>}
        {answer && (
          <>
            <p class={`verdict ${answer.explanation.verdict}`}>{answer.explanation.verdict === 'allow' ? 'Allowed' : 'Denied'} on {question.port}</p>
            <pre class="explanation">{answer.text}</pre>
            {writable && (answer.explanation.fix?.steps ?? []).map((step) => (
              <p key={step.summary} class="fix"><button onClick={() => onFix(step)}>Open this fix</button> <span>{step.summary}</span></p>
            ))}
            {involved.length > 0 && <p>Policies: <Policies policies={involved} onPolicy={onPolicy} /></p>}
          </>
        )}
      </div>
      {writable && !isAddress(to) && <p><button onClick={() => onDraw(pair.from, pair.to, question.port)}>Write a policy that allows this</button></p>}
    </section>
  );
}
