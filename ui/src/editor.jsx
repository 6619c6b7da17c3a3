// The editor of one policy: faults as one types, what it would open and close, and its way into the cluster.
import { acceptCompletion, autocompletion, completionKeymap } from '@codemirror/autocomplete';
import { defaultKeymap, history, historyKeymap } from '@codemirror/commands';
import { yaml } from '@codemirror/lang-yaml';
import { HighlightStyle, indentUnit, syntaxHighlighting } from '@codemirror/language';
import { lintGutter, setDiagnostics } from '@codemirror/lint';
import { EditorState } from '@codemirror/state';
import { EditorView, drawSelection, keymap, lineNumbers } from '@codemirror/view';
import { tags } from '@lezer/highlight';
import { useEffect, useRef, useState } from 'preact/hooks';
import { get, post } from './api.js';
import { complete } from './complete.js';
import { ofStored } from './manifest.js';
import { pods } from './model.js';

const THEME = EditorView.theme({
  '&': { height: '100%', fontSize: '12.5px', backgroundColor: 'var(--field)', color: 'var(--text)' },
  '&.cm-focused': { outline: 'none' },
  '.cm-content': { fontFamily: 'var(--mono)', caretColor: 'var(--text)' },
  '.cm-cursor': { borderLeftColor: 'var(--text)' },
  '.cm-gutters': { backgroundColor: 'var(--field)', color: 'var(--muted)', border: 'none' },
  '.cm-selectionBackground, &.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground': { background: 'var(--selected)' },
  '.cm-tooltip': { backgroundColor: 'var(--raised)', color: 'var(--text)', border: '1px solid var(--line)' },
  '.cm-tooltip-autocomplete > ul > li[aria-selected]': { backgroundColor: 'var(--accent)', color: 'var(--on-accent)' },
  // By default these are images, which the Content-Security-Policy does not allow in a style.
  '.cm-lint-marker': { content: 'none', borderRadius: '50%', width: '8px', height: '8px', marginTop: '5px' },
  '.cm-lint-marker-error': { content: 'none', backgroundColor: 'var(--close)' },
  '.cm-lint-marker-warning': { content: 'none', backgroundColor: 'var(--warn)' },
  '.cm-lintRange': { backgroundImage: 'none' },
  '.cm-lintRange-error': { backgroundImage: 'none', textDecoration: 'underline wavy var(--close)' },
  '.cm-lintRange-warning': { backgroundImage: 'none', textDecoration: 'underline wavy var(--warn)' },
  '.cm-completionDetail': { color: 'inherit', opacity: 0.8 },
});

const COLOURS = HighlightStyle.define([
  { tag: [tags.propertyName, tags.definition(tags.propertyName)], color: 'var(--accent)' },
  { tag: [tags.comment], color: 'var(--muted)' },
  { tag: [tags.string, tags.number, tags.bool], color: 'var(--text)' },
]);

/**
 * CodeMirror's own tree of elements. In a shadow root its styles need no exception in the Content-Security-Policy.
 * `text` is what it begins with: another text takes another editor. Setting it from outside while somebody types would
 * bring back what was there a keystroke ago.
 */
function Code({ text, faults, graph, onChange, readOnly }) {
  const host = useRef();
  const view = useRef();
  const current = useRef();
  current.current = { graph, onChange };
  useEffect(() => {
    const root = host.current.shadowRoot || host.current.attachShadow({ mode: 'open' });
    const fill = new CSSStyleSheet();
    fill.replaceSync(':host { display: block } .code { height: 100% }');
    root.adoptedStyleSheets = [fill];
    const parent = document.createElement('div');
    parent.className = 'code';
    root.append(parent);
    const source = (context) => {
      const word = context.matchBefore(/[^\s:"'\[\],-]+/);
      const line = context.state.doc.lineAt(context.pos);
      const begins = /^[\s-]*$|: +$/.test(line.text.slice(0, context.pos - line.from));
      if (!word && !context.explicit && !begins) return null;
      const found = complete(context.state.doc.toString(), context.pos, current.current.graph);
      return found && { ...found, validFor: /^[\w./-]*$/ };
    };
    view.current = new EditorView({
      root,
      parent,
      state: EditorState.create({
        doc: text,
        extensions: [
          lineNumbers(), history(), drawSelection(), yaml(), lintGutter(), indentUnit.of('  '), EditorState.tabSize.of(2),
          autocompletion({ override: [source], icons: false, defaultKeymap: true }),
          syntaxHighlighting(COLOURS), THEME, EditorState.readOnly.of(readOnly),
          // Without a list of completions the tab key leaves the editor: nobody with a keyboard alone is caught in it.
          keymap.of([{ key: 'Tab', run: acceptCompletion }, ...completionKeymap, ...defaultKeymap, ...historyKeymap]),
          EditorView.contentAttributes.of({ 'aria-label': 'Manifest of the policy' }),
          EditorView.updateListener.of((update) => {
            if (update.docChanged) current.current.onChange(update.state.doc.toString());
          }),
        ],
      }),
    });
    return () => {
      view.current.destroy();
      parent.remove();
    };
  }, []);
  useEffect(() => {
    const { doc } = view.current.state;
    const diagnostics = faults.map((fault) => {
      const line = doc.line(Math.min(Math.max(fault.line, 1), doc.lines));
      const from = Math.min(line.from + fault.column - 1, line.to);
      return { from, to: Math.max(from, line.to), severity: fault.severity === 'note' ? 'info' : fault.severity, message: fault.text };
    });
    view.current.dispatch(setDiagnostics(view.current.state, diagnostics));
  }, [faults]);
  return <div class="code-host" ref={host} />;
}

/** What a change opens and closes, pair by pair. */
export function Changes({ changes, limit = 12 }) {
  if (!changes.length) return <p class="muted">Nothing changes: every pair of workloads may talk exactly as before.</p>;
  const name = (id) => id.replace(/^ip\//, '').replace(/^([^/]+)\/[^/]+\//, '$1/');
  return (
    <ul class="changes">
      {changes.slice(0, limit).map(({ from, to, opened, closed }) => (
        <li key={`${from} ${to}`}>
          {opened.length > 0 && <span class="opens">+ opens {opened.join(', ')}</span>}
          {closed.length > 0 && <span class="closes">− closes {closed.join(', ')}</span>}
          <span class="pair">{name(from)} → {name(to)}</span>
        </li>
      ))}
      {changes.length > limit && <li class="muted">and {changes.length - limit} more pairs, on the graph</li>}
    </ul>
  );
}

export function Editor({ draft, about, graph, version, onDraft, onComparison, onDone, onClose }) {
  const [checked, setChecked] = useState(null);
  const [comparison, setComparison] = useState(null);
  const [asking, setAsking] = useState(null);
  const [failure, setFailure] = useState(null);
  const [busy, setBusy] = useState(false);
  const dialog = useRef();
  const edit = { replaces: draft.replaces, revision: draft.revision, text: draft.text };

  useEffect(() => {
    let stale = false;
    const timer = setTimeout(async () => {
      try {
        const validation = await post('validate', { text: draft.text });
        if (stale) return;
        setChecked(validation);
        if (!validation.valid) {
          setComparison(null);
          onComparison(null);
          return;
        }
        const result = await post('diff', edit);
        if (stale) return;
        setComparison(result);
        onComparison(result);
      } catch (error) {
        if (!stale) setFailure(error);
      }
    }, 250);
    return () => {
      stale = true;
      clearTimeout(timer);
    };
  }, [draft.text, draft.replaces, version]);

  useEffect(() => {
    if (asking) dialog.current.showModal();
  }, [asking]);

  const askToApply = async (isDeletion) => {
    setFailure(null);
    try {
      const wanted = isDeletion ? { ...edit, text: null } : edit;
      const result = await post('diff', wanted);
      onComparison(result);
      setAsking({ isDeletion, wanted, changes: result.changes });
    } catch (error) {
      setFailure(error);
    }
  };

  const apply = async () => {
    const { wanted, isDeletion } = asking;
    setAsking(null);
    setBusy(true);
    try {
      const stored = await post('apply', wanted);
      onDone({ before: draft.replaces ? draft.original : null, stored, policy: checked?.policy ?? draft.replaces, isDeletion });
    } catch (error) {
      setFailure(error);
    } finally {
      setBusy(false);
    }
  };

  const isChanged = draft.text !== draft.original;
  const verb = about.mode === 'folder' ? 'Save' : 'Apply';
  const faults = checked?.faults ?? [];
  return (
    <section class="editor" aria-label="Editor">
      <header>
        <h2>{draft.replaces ?? 'New policy'}</h2>
        <span class="muted">{draft.place}</span>
        <button class="quiet" onClick={onClose}>{isChanged && about.writable ? 'Discard' : 'Close'}</button>
      </header>
      <Code text={draft.text} faults={faults} graph={graph} readOnly={!about.writable} onChange={(text) => onDraft({ ...draft, text })} />
      <div class="under" aria-live="polite">
        {failure && (
          <div class="problem" role="alert">
            <p>{failure.message}</p>
            {failure.current && (
              <>
                <details>
                  <summary>The version that is stored now</summary>
                  <pre>{ofStored(failure.current)}</pre>
                </details>
                <p class="row">
                  <button onClick={() => {
                    const text = ofStored(failure.current);
                    setFailure(null);
                    onDraft({ ...draft, text, original: text, revision: failure.current.revision, replaces: draft.replaces ?? checked?.policy });
                  }}>Take theirs</button>
                  <button onClick={() => {
                    const { current } = failure;
                    setFailure(null);
                    onDraft({ ...draft, original: ofStored(current), revision: current.revision, replaces: draft.replaces ?? checked?.policy });
                  }}>Keep mine, to replace theirs</button>
                </p>
              </>
            )}
          </div>
        )}
        {faults.length > 0 && (
          <ul class="faults">
            {faults.slice(0, 6).map((fault) => (
              <li key={`${fault.line}:${fault.column}:${fault.text}`} class={fault.severity}>
                <b>{fault.severity}</b> line {fault.line}: {fault.text}{fault.path && <span class="muted"> {fault.path}</span>}
              </li>
            ))}
          </ul>
        )}
        {checked?.valid && (
          <p>
            Selects {pods(checked.pods.length)}{checked.pods.length > 0 && ': '}
            <span class="muted">{checked.pods.slice(0, 6).join(', ')}{checked.pods.length > 6 && ' …'}</span>
          </p>
        )}
        {comparison && <Changes changes={comparison.changes} />}
        {draft.hint && <p class="hint">{draft.hint}</p>}
      </div>
      {about.writable && (
        <footer class="row">
          <button class="primary" disabled={busy || !checked?.valid || (!isChanged && draft.replaces)} onClick={() => askToApply(false)}>{verb}…</button>
          {draft.replaces && <button class="danger" disabled={busy} onClick={() => askToApply(true)}>Delete…</button>}
        </footer>
      )}
      {asking && (
        <dialog ref={dialog} aria-labelledby="asking" onClose={() => setAsking(null)}>
          <h2 id="asking">{asking.isDeletion ? `Delete ${draft.replaces}?` : `${verb} ${checked?.policy}?`}</h2>
          <p class="muted">{about.mode === 'folder' ? `Writes to ${draft.place || about.title}.` : `In ${about.title}, with your rights.`}</p>
          <Changes changes={asking.changes} />
          <p class="row">
            <button class={asking.isDeletion ? 'danger' : 'primary'} onClick={apply}>{asking.isDeletion ? 'Delete' : verb}</button>
            <button onClick={() => dialog.current.close()} autofocus>Cancel</button>
          </p>
        </dialog>
      )}
    </section>
  );
}

/** Loads a stored policy to edit. */
export async function open(policy) {
  const stored = await get('policy', { policy });
  const text = ofStored(stored);
  return { replaces: policy, text, original: text, revision: stored.revision, place: stored.place };
}
