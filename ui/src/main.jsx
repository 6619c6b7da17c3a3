import "./app.css";
// The page: its views, what is selected, and the policy that is being written.
import { render } from 'preact';
import { useCallback, useEffect, useRef, useState } from 'preact/hooks';
import { get, post } from './api.js';
import { Editor, open } from './editor.jsx';
import { GraphView } from './graph.jsx';
import { blank, ofArrow, ofManifest, ofStored, patched } from './manifest.js';
import { edgeBetween, firstPort, fullName, isAddress } from './model.js';
import { PairPanel, WorkloadPanel } from './panel.jsx';
import { Drops, Matrix, Nodes, PolicyList } from './tables.jsx';

const VIEWS = ['graph', 'matrix', 'policies', 'nodes', 'drops'];
const viewOf = () => VIEWS.find((view) => location.hash === `#/${view}`) ?? 'graph';

function App() {
  const [about, setAbout] = useState(null);
  const [state, setState] = useState(null);
  const [graph, setGraph] = useState(null);
  const [away, setAway] = useState(null);
  const [view, setView] = useState(viewOf);
  const [search, setSearch] = useState('');
  const [selectedId, setSelectedId] = useState(null);
  const [pairIds, setPairIds] = useState(null);
  const [draft, setDraft] = useState(null);
  const [comparison, setComparison] = useState(null);
  const [drawing, setDrawing] = useState(false);
  const [drawFrom, setDrawFrom] = useState(null);
  const [arrow, setArrow] = useState(null);
  const [undo, setUndo] = useState([]);
  const [notice, setNotice] = useState(null);
  const field = useRef();
  const wake = useRef(() => {});

  useEffect(() => {
    const listener = () => setView(viewOf());
    addEventListener('hashchange', listener);
    return () => removeEventListener('hashchange', listener);
  }, []);

  // The state is small and asked for often; the graph only when something has changed.
  useEffect(() => {
    let timer;
    let known = null;
    const poll = async () => {
      clearTimeout(timer);
      try {
        if (known === null) setAbout(await get('about'));
        const now = await get('state');
        if (now.version !== known) {
          setGraph(await get('graph'));
          known = now.version;
        }
        setState(now);
        setAway(null);
      } catch (error) {
        setAway(error);
      }
      timer = setTimeout(poll, document.hidden ? 10000 : 2000);
    };
    wake.current = poll;
    poll();
    const visible = () => !document.hidden && poll();
    document.addEventListener('visibilitychange', visible);
    return () => {
      clearTimeout(timer);
      document.removeEventListener('visibilitychange', visible);
    };
  }, []);

  useEffect(() => {
    const keys = (event) => {
      const typing = event.target.closest?.('input, select, textarea, .code-host, dialog');
      if (event.key === '/' && !typing) {
        event.preventDefault();
        field.current?.focus();
      } else if (event.key === 'Escape' && !typing) {
        setDrawing(false);
        setDrawFrom(null);
      }
    };
    addEventListener('keydown', keys);
    return () => removeEventListener('keydown', keys);
  }, []);

  const at = useCallback((id) => (graph ? graph.workloads.findIndex((one) => one.id === id) : -1), [graph]);
  if (!graph || !about) {
    return (
      <main class="start">
        <h1>towpath</h1>
        {away ? <p class="problem" role="alert">{away.message}</p> : <p class="muted">Reading the objects…</p>}
      </main>
    );
  }
  const shown = comparison?.after ?? graph;
  const indexIn = (id) => shown.workloads.findIndex((one) => one.id === id);
  const selected = selectedId !== null && indexIn(selectedId) >= 0 ? indexIn(selectedId) : null;
  const pair = pairIds && indexIn(pairIds.from) >= 0 && indexIn(pairIds.to) >= 0 ? { from: indexIn(pairIds.from), to: indexIn(pairIds.to) } : null;
  const idAt = (index) => shown.workloads[index].id;

  const isDirty = draft && draft.text !== draft.original;
  const mayLeave = () => !isDirty || !about.writable || confirm('Discard the changes of this policy?');
  const edit = (next) => {
    if (!mayLeave()) return;
    setComparison(null);
    setDraft(next);
  };
  const onPolicy = async (policy) => {
    if (about.mode === 'node') {
      setSearch(policy);
      location.hash = '#/policies';
      return;
    }
    try {
      setNotice(null);
      edit(await open(policy));
      setPairIds(null);
      setSelectedId(null);
    } catch (error) {
      setNotice({ text: error.message, isBad: true });
    }
  };
  const onPair = (from, to) => {
    setPairIds({ from: idAt(from), to: idAt(to) });
    setSelectedId(null);
  };
  const onSelect = (index) => {
    setPairIds(null);
    setSelectedId(index === null ? null : idAt(index));
  };
  const write = (from, to, port, direction) => {
    const text = ofArrow(shown, shown.workloads[from], shown.workloads[to], port, direction);
    const other = shown.workloads[from];
    const hint = direction === 'ingress' && (other.egress.isolated || other.egress.partly)
      ? `${fullName(other)} is isolated for egress as well: it also needs a policy that lets it send. Draw it next, from the same pair.`
      : null;
    edit({ replaces: null, revision: null, text, original: '', place: about.mode === 'folder' ? about.title : '', hint });
  };
  const onDraw = (from, to, port) => {
    setDrawing(false);
    setDrawFrom(null);
    const [sender, receiver] = [shown.workloads[from], shown.workloads[to]];
    if (isAddress(sender) && isAddress(receiver)) return;
    const edge = edgeBetween(shown, from, to);
    setArrow({ from: idAt(from), to: idAt(to), port: port ?? firstPort(sender, receiver, edge), direction: isAddress(receiver) ? 'egress' : 'ingress' });
  };
  /** Opens a step of what `explain` proposes in the editor: a new policy, or a change of one. */
  const onFix = async (step) => {
    try {
      if (step.manifest) {
        edit({ replaces: null, revision: null, text: ofManifest(step.manifest), original: '', place: about.mode === 'folder' ? about.title : '' });
        return;
      }
      const draft = await open(step.policy);
      edit({ ...draft, text: patched(draft.text, step.patch) });
    } catch (error) {
      setNotice({ text: error.message, isBad: true });
    }
  };
  const startNew = () => {
    const namespace = selected !== null && shown.workloads[selected].namespace;
    const first = graph.workloads.find((one) => one.namespace)?.namespace ?? graph.namespaces[0]?.name ?? 'default';
    edit({ replaces: null, revision: null, text: blank(namespace || first), original: '', place: about.mode === 'folder' ? about.title : '' });
  };
  const onDone = ({ before, stored, policy, isDeletion }) => {
    const what = isDeletion ? `deleted ${draft.replaces}` : before ? `changed ${policy}` : `created ${policy}`;
    const inverse = isDeletion
      ? { replaces: null, revision: null, text: before }
      : { replaces: policy, revision: stored.revision, text: before };
    setUndo([...undo.slice(-19), { what, inverse, policy: isDeletion ? draft.replaces : policy, from: draft.revision }]);
    setNotice({ text: `${what[0].toUpperCase()}${what.slice(1)}.` });
    setComparison(null);
    if (isDeletion) setDraft(null);
    else {
      const text = ofStored(stored);
      setDraft({ replaces: policy, text, original: text, revision: stored.revision, place: stored.place });
    }
    wake.current();
  };
  const takeBack = async () => {
    const last = undo[undo.length - 1];
    try {
      const stored = await post('apply', last.inverse);
      // What came just before it can be undone next: it left what this one began with, which is stored again. A change of
      // somebody else in between keeps its version, and is not overwritten.
      const follows = (entry) => entry.policy === last.policy && entry.inverse.revision === last.from;
      setUndo(undo.slice(0, -1).map((entry) => (stored && follows(entry) ? { ...entry, inverse: { ...entry.inverse, revision: stored.revision } } : entry)));
      setNotice({ text: `Undone: ${last.what}.` });
      setDraft(null);
      setComparison(null);
    } catch (error) {
      setNotice({ text: `Not undone: ${error.message}`, isBad: true });
    }
    wake.current();
  };

  const tabs = VIEWS.filter((one) => one !== 'drops' || about.mode === 'node').filter((one) => one !== 'nodes' || about.mode !== 'folder');
  const common = { graph: shown, search, comparison, onPair };
  const hasSide = draft || pair || selected !== null;
  return (
    <div class={`page${hasSide ? ' with-side' : ''}`}>
      <header class="top">
        <h1>towpath</h1>
        <span class="title" title={about.title}>{about.title}</span>
        <nav aria-label="Views">
          {tabs.map((one) => <a key={one} href={`#/${one}`} aria-current={view === one ? 'page' : undefined}>{one[0].toUpperCase() + one.slice(1)}</a>)}
        </nav>
        <input ref={field} type="search" placeholder="Search  /" aria-label="Search workloads, pods, labels, ports and policies" value={search} onInput={(event) => setSearch(event.target.value)} />
        <span class="spring" />
        {about.writable ? (
          <>
            <button aria-pressed={drawing} onClick={() => [setDrawing(!drawing), setDrawFrom(null)]}>Draw</button>
            <button onClick={startNew}>New policy</button>
            {undo.length > 0 && <button onClick={takeBack} title={undo[undo.length - 1].what}>Undo</button>}
          </>
        ) : <span class="muted">read-only</span>}
      </header>
      <div class="notices" aria-live="polite">
        {away && <p class="problem" role="alert">{away.message}</p>}
        {state?.stale && <p class="problem">These objects may be out of date: {state.stale}</p>}
        {state?.faults.length > 0 && (
          <details class="faulty"><summary>{state.faults.length} {state.faults.length === 1 ? 'fault' : 'faults'} in the objects</summary>{state.faults.slice(0, 100).map((fault) => <div key={fault} class="mono">{fault}</div>)}</details>
        )}
        {graph.incomplete && <p class="note">{graph.incomplete}</p>}
        {notice && <p class={notice.isBad ? 'problem' : 'note'}>{notice.text} <button class="quiet" onClick={() => setNotice(null)}>Dismiss</button></p>}
        {drawing && <p class="note">Press on the sender, then on the receiver. Escape ends it.</p>}
      </div>
      <main>
        <h2 class="unseen">{view}</h2>
        {view === 'graph' && <GraphView {...common} selected={selected} pair={pair} drawing={drawing} drawFrom={drawFrom} onSelect={onSelect} onDraw={onDraw} />}
        {view === 'matrix' && <Matrix {...common} />}
        {view === 'policies' && <PolicyList version={state?.version} search={search} selected={draft?.replaces} writable={about.writable} onPolicy={onPolicy} onNew={startNew} />}
        {view === 'nodes' && <Nodes search={search} />}
        {view === 'drops' && <Drops graph={shown} search={search} onSelect={onSelect} />}
      </main>
      {hasSide && (
        <aside aria-label="Details">
          {pair && <PairPanel graph={shown} pair={pair} version={state?.version} writable={about.writable} onPolicy={onPolicy} onDraw={onDraw} onFix={onFix} onSelect={onSelect} onClose={() => setPairIds(null)} />}
          {!pair && selected !== null && <WorkloadPanel graph={shown} at={selected} writable={about.writable} onPair={onPair} onPolicy={onPolicy} onDrawFrom={(from) => [setDrawing(true), setDrawFrom(idAt(from))]} onClose={() => setSelectedId(null)} />}
          {draft && <Editor key={`${draft.replaces} ${draft.original}`} draft={draft} about={about} graph={graph} version={state?.version} onDraft={setDraft} onComparison={setComparison} onDone={onDone} onClose={() => edit(null)} />}
        </aside>
      )}
      <footer class="status">
        <span>{state?.pods} pods</span><span>{graph.workloads.filter((one) => !isAddress(one)).length} workloads</span><span>{state?.namespaces} namespaces</span><span>{state?.policies} policies</span>
        <span class="spring" /><span>towpath {about.program}</span><a href="NOTICE.txt">licences</a>
      </footer>
      {arrow && <ArrowDialog arrow={arrow} graph={shown} onClose={() => setArrow(null)} onWrite={({ from, to, port, direction }) => [setArrow(null), write(at(from), at(to), port, direction)]} />}
    </div>
  );
}

/** The port of an arrow that was drawn. */
function ArrowDialog({ arrow, graph, onClose, onWrite }) {
  const dialog = useRef();
  const [port, setPort] = useState(arrow.port);
  const [direction, setDirection] = useState(arrow.direction);
  useEffect(() => dialog.current.showModal(), []);
  const find = (id) => graph.workloads.find((one) => one.id === id);
  const [from, to] = [find(arrow.from), find(arrow.to)];
  const isFixed = isAddress(from) || isAddress(to);
  return (
    <dialog ref={dialog} aria-labelledby="arrow" onClose={onClose}>
      <form method="dialog" onSubmit={(event) => [event.preventDefault(), onWrite({ ...arrow, port: port.trim(), direction })]}>
        <h2 id="arrow">{fullName(from)} → {fullName(to)}</h2>
        <p><label>Port <input value={port} onInput={(event) => setPort(event.target.value)} autofocus spellcheck={false} placeholder="every port" pattern="([0-9]{1,5}|[a-z][a-z0-9\-]*)?(/(TCP|UDP|SCTP|tcp|udp|sctp))?" title="PORT or PORT/PROTOCOL; empty for every port" /></label></p>
        {!isFixed && (
          <fieldset>
            <legend>Whose policy</legend>
            <label><input type="radio" name="direction" checked={direction === 'ingress'} onChange={() => setDirection('ingress')} /> ingress of {fullName(to)}</label>
            <label><input type="radio" name="direction" checked={direction === 'egress'} onChange={() => setDirection('egress')} /> egress of {fullName(from)}</label>
          </fieldset>
        )}
        <p class="row"><button class="primary">Write the manifest</button><button type="button" onClick={onClose}>Cancel</button></p>
      </form>
    </dialog>
  );
}

render(<App />, document.getElementById('app'));
