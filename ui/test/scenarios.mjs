// What a person does on the page, and what they must see then.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync, unlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { STARS } from './stars.mjs';

const require = createRequire(import.meta.url);
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

const node = (page, id) => page.locator(`[data-id="${id}"]`);
const BACKEND = 'stars/Deployment/backend';
const FRONTEND = 'stars/Deployment/frontend';
const CLIENT = 'client/Deployment/client';
const UI = 'management-ui/Deployment/management-ui';

const ready = (page) => page.locator('.status').waitFor();
const view = (page, name) => page.getByRole('navigation', { name: 'Views' }).getByRole('link', { name }).click();
const editor = (page) => page.getByRole('textbox', { name: 'Manifest of the policy' });
/**
 * Replaces the text of the editor. Not over the selection: the browser then tries to keep the look of what it replaces
 * with an inline style, which the page's policy refuses.
 */
async function paste(page, text) {
  await editor(page).click();
  await page.keyboard.press('Control+a');
  await page.keyboard.press('Delete');
  await page.keyboard.insertText(text);
}
const changes = (page) => page.locator('.editor .changes li').allTextContents();

/** Writes a new policy and stores it. */
async function write(page, text, verb = 'Save') {
  await page.getByRole('button', { name: 'New policy' }).click();
  await paste(page, text);
  await store(page, verb);
}

async function store(page, verb = 'Save') {
  // The notice of an earlier change would say at once that this one is done.
  const dismiss = page.getByRole('button', { name: 'Dismiss' });
  if (await dismiss.count()) await dismiss.click();
  await page.getByRole('button', { name: `${verb}…` }).click();
  await page.getByRole('dialog').getByRole('button', { name: verb, exact: true }).click();
  await page.locator('.notices .note').waitFor();
}

/** The arrows of the graph as pairs of ids. */
async function arrows(page) {
  return page.evaluate(() => {
    const ids = [...document.querySelectorAll('[data-at]')].map((element) => element.dataset.id);
    return [...document.querySelectorAll('[data-edge]')].map((edge) => edge.dataset.edge.split(' ').map((at) => ids[at]).join(' > ')).sort();
  });
}

/** Accessibility faults that axe finds now. */
async function faults(page) {
  // By the debugger's protocol: the page's own policy allows no script but its own.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
  return violations.map((one) => `${one.id}: ${one.help}: ${one.nodes.slice(0, 3).map((found) => found.html).join(' | ')}`);
}

const DENY = STARS[0].text;

/** Somebody else, with kubectl. */
function kubectl(args, input = '') {
  return execFileSync(process.env.PAGE_KUBECTL, ['--kubeconfig', process.env.PAGE_KUBECONFIG, ...args], { input, encoding: 'utf8' });
}

export const scenarios = {
  look: {
    async run({ page }) {
      await ready(page);
      assert.equal(new URL(page.url()).hash, '', 'the token does not stay in the address');
      const ids = [BACKEND, FRONTEND, CLIENT, UI];
      for (const id of ids) await node(page, id).waitFor();
      const pairs = await arrows(page);
      for (const from of ids) for (const to of ids) if (from !== to) assert(pairs.includes(`${from} > ${to}`), `${from} > ${to}`);

      await node(page, BACKEND).click();
      await page.getByRole('heading', { name: 'stars/backend' }).waitFor();
      await page.locator('.peers').first().getByRole('button', { name: 'client/client' }).click();
      await page.getByText('Allowed on 6379/TCP').waitFor();
      assert.match(await page.locator('.explanation').textContent(), /no policy selects stars\/backend for ingress/);
      await page.getByRole('combobox', { name: 'Port' }).fill('0/TCP');
      await page.getByRole('alert').getByText('is not a port').waitFor();
    },
    refusals: true,
  },

  tables: {
    async run({ page }) {
      await ready(page);
      await view(page, 'Matrix');
      const cell = page.getByRole('button', { name: /^client\/client to stars\/backend:/ });
      assert.match(await cell.getAttribute('aria-label'), /: nothing$/);
      const allowed = page.getByRole('button', { name: /^stars\/frontend to stars\/backend:/ });
      assert.match(await allowed.getAttribute('aria-label'), /: 6379\/TCP$/);
      await cell.click();
      await page.getByText('Denied on 6379/TCP').waitFor();
      assert.match(await page.locator('.explanation').textContent(), /isolates? stars\/backend for ingress/);
      await page.getByRole('button', { name: 'stars/default-deny' }).first().click();
      await page.getByRole('heading', { name: 'stars/default-deny' }).waitFor();
      assert.match(await editor(page).textContent(), /name: default-deny/);

      await view(page, 'Policies');
      const row = page.getByRole('row', { name: /stars\/backend-policy/ });
      assert.match(await row.textContent(), /role=backend.*1 rule.*1 pod/);
      await page.getByRole('searchbox').fill('role=backend');
      await page.getByRole('row', { name: /client\/default-deny/ }).waitFor({ state: 'detached' });
      assert(await row.isVisible());
      assert.equal(await page.getByRole('row').count(), 2, 'the heading and one policy');
    },
  },

  /** The change that `explain` proposes, taken as it is. */
  fix: {
    async run({ page, folder }) {
      await ready(page);
      await view(page, 'Matrix');
      await page.getByRole('button', { name: /^client\/client to stars\/backend:/ }).click();
      await page.getByText('Denied on 6379/TCP').waitFor();
      await page.getByRole('button', { name: 'Open this fix' }).first().click();
      await page.locator('.editor .changes li').first().waitFor();
      const opened = await changes(page);
      assert.deepEqual(opened.map((text) => text.replace(/\s+/g, ' ')), ['+ opens 6379/TCPclient/client → stars/backend']);
      await store(page);
      await page.getByText('Allowed on 6379/TCP').waitFor();
      const texts = readdirSync(folder).map((file) => readFileSync(join(folder, file), 'utf8')).join('\n');
      assert.match(texts, /# kept/, 'comments of the file stay');
    },
  },

  write: {
    refusals: true,
    async run({ page, folder }) {
      await ready(page);
      await page.getByRole('button', { name: 'New policy' }).click();
      await paste(page, DENY.replace('podSelector', 'podSelektor'));
      await page.locator('.faults .error').getByText('podSelektor').waitFor();
      assert.equal(await page.getByRole('button', { name: 'Save…' }).isDisabled(), true);
      await paste(page, DENY);
      await page.locator('.editor .changes li').first().waitFor();
      const closes = await changes(page);
      assert(closes.some((text) => /closes all traffic.*client\/client → stars\/backend/.test(text)), closes.join('\n'));
      assert(closes.every((text) => !text.includes('opens')));
      await page.locator('.edge.closes').first().waitFor();
      assert(!existsSync(join(folder, 'stars-default-deny.yaml')), 'nothing is written before it is confirmed');

      await page.getByRole('button', { name: 'Save…' }).click();
      await page.getByRole('dialog').getByRole('button', { name: 'Cancel' }).click();
      assert(!existsSync(join(folder, 'stars-default-deny.yaml')), 'nothing is written after Cancel');
      await store(page);
      const file = join(folder, 'stars-default-deny.yaml');
      assert.equal(readFileSync(file, 'utf8'), DENY);
      await page.waitForFunction(() => !document.querySelector('.edge.closes') && document.querySelector('.status').textContent.includes('1 policies'));
      assert(!(await arrows(page)).includes(`${CLIENT} > ${BACKEND}`));

      // Somebody else changes the file meanwhile.
      const theirs = DENY.replace('podSelector: {}', 'podSelector:\n    matchLabels:\n      role: backend');
      await paste(page, `${DENY}# mine\n`);
      writeFileSync(file, theirs);
      await page.getByRole('button', { name: 'Save…' }).click();
      await page.getByRole('dialog').getByRole('button', { name: 'Save', exact: true }).click();
      await page.getByRole('alert').getByText('was changed meanwhile').waitFor();
      assert.equal(readFileSync(file, 'utf8'), theirs);
      await page.getByRole('button', { name: 'Take theirs' }).click();
      assert.match(await editor(page).textContent(), /role: backend/);

      await page.getByRole('button', { name: 'Delete…' }).click();
      await page.getByRole('dialog').getByText('opens all traffic').first().waitFor();
      await page.getByRole('dialog').getByRole('button', { name: 'Delete', exact: true }).click();
      await page.getByText('Deleted stars/default-deny.').waitFor();
      assert(!existsSync(file));
      await page.getByRole('button', { name: 'Undo' }).click();
      await page.getByText('Undone: deleted stars/default-deny.').waitFor();
      assert.equal(readFileSync(file, 'utf8'), theirs);
    },
  },

  undo: {
    refusals: true,
    async run({ page, folder }) {
      await ready(page);
      const file = join(folder, 'stars-default-deny.yaml');
      await write(page, DENY);
      const changed = DENY.replace('podSelector: {}', 'podSelector: {matchLabels: {role: backend}}');
      await paste(page, changed);
      await store(page);
      assert.equal(readFileSync(file, 'utf8'), changed);
      await page.getByRole('button', { name: 'Undo' }).click();
      await page.getByText('Undone: changed stars/default-deny.').waitFor();
      assert.equal(readFileSync(file, 'utf8'), DENY);
      await page.getByRole('button', { name: 'Undo' }).click();
      await page.getByText('Undone: created stars/default-deny.').waitFor();
      assert(!existsSync(file));
      // What somebody else changed since is not undone.
      await write(page, DENY);
      writeFileSync(file, changed);
      await page.getByRole('button', { name: 'Undo' }).click();
      await page.getByText('Not undone:').waitFor();
      assert.equal(readFileSync(file, 'utf8'), changed);
      unlinkSync(file);
    },
  },

  complete: {
    async run({ page }) {
      await ready(page);
      await page.getByRole('button', { name: 'New policy' }).click();
      const offers = async (text, expected) => {
        await paste(page, text);
        await page.keyboard.press('Control+End');
        await page.keyboard.press('Control+Space');
        const list = page.locator('.cm-tooltip-autocomplete li');
        await list.first().waitFor();
        const labels = await page.locator('.cm-tooltip-autocomplete li .cm-completionLabel').allTextContents();
        for (const label of expected) assert(labels.includes(label), `${label} is not in ${labels}, after\n${text}`);
        await page.keyboard.press('Escape');
        return labels;
      };
      const head = 'apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: a\n  namespace: stars\nspec:\n';
      await offers('apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  namespace: ', ['stars', 'client', 'management-ui']);
      await offers(`${head}  `, ['podSelector', 'ingress', 'egress', 'policyTypes']);
      assert.deepEqual(await offers(`${head}  podSelector:\n    matchLabels:\n      `, ['role']), ['role']);
      // Labels of other namespaces are no use here.
      assert.deepEqual(await offers(`${head}  podSelector:\n    matchLabels:\n      role: `, ['backend', 'frontend']), ['backend', 'frontend']);
      const from = `${head}  podSelector: {}\n  ingress:\n  - from:\n    - namespaceSelector:\n        matchLabels:\n`;
      await offers(`${from}          `, ['kubernetes.io/metadata.name', 'role']);
      await offers(`${from}          role: `, ['client', 'management-ui']);
      await offers(`${head}  podSelector: {}\n  ingress:\n  - ports:\n    - port: `, ['6379', '80', '9000', '9001']);
      await offers(`${head}  podSelector: {}\n  ingress:\n  - `, ['from', 'ports']);
      // Choosing one writes it.
      await paste(page, `${head}  podSelector:\n    matchLabels:\n      role: fr`);
      await page.keyboard.press('Control+End');
      await page.keyboard.press('Control+Space');
      await page.locator('.cm-tooltip-autocomplete li').first().waitFor();
      await page.waitForTimeout(150);
      await page.keyboard.press('Enter');
      await page.getByText('Selects 1 pod: stars/frontend').waitFor();
    },
  },

  draw: {
    async run({ page, folder, shot }) {
      await ready(page);
      await write(page, DENY);
      await page.getByRole('button', { name: 'Close', exact: true }).click();
      await page.getByRole('button', { name: 'Draw' }).click();
      await page.locator('.canvas.drawing').waitFor();
      await page.waitForTimeout(300);
      const [from, to] = [await node(page, CLIENT).boundingBox(), await node(page, FRONTEND).boundingBox()];
      await page.mouse.move(from.x + from.width / 2, from.y + from.height / 2);
      await page.mouse.down();
      await page.mouse.move(to.x + to.width / 2, to.y + to.height / 2, { steps: 8 });
      await page.mouse.up();
      const dialog = page.getByRole('dialog');
      await dialog.getByRole('heading', { name: 'client/client → stars/frontend' }).waitFor();
      assert.equal(await dialog.getByLabel('Port').inputValue(), '80/TCP');
      await dialog.getByRole('button', { name: 'Write the manifest' }).click();
      await page.getByText('Selects 1 pod: stars/frontend').waitFor();
      await page.locator('.editor .changes li').first().waitFor();
      const opened = await changes(page);
      assert.deepEqual(opened.map((text) => text.replace(/\s+/g, ' ')), ['+ opens 80/TCPclient/client → stars/frontend']);
      await page.locator('.edge.opens').waitFor();
      await shot('draw');
      await store(page);
      assert.match(readFileSync(join(folder, 'stars-frontend-from-client.yaml'), 'utf8'), /kubernetes.io\/metadata.name: client/);
      await page.waitForFunction(() => !document.querySelector('.edge.opens') && document.querySelector('.status').textContent.includes('2 policies'));
      assert((await arrows(page)).includes(`${CLIENT} > ${FRONTEND}`));
    },
  },

  keyboard: {
    async run({ page, folder }) {
      await ready(page);
      await node(page, CLIENT).waitFor();
      const focused = () => page.evaluate(() => document.activeElement.dataset?.id ?? document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent);
      const tabTo = async (wanted) => {
        for (let tabs = 0; tabs < 40; tabs++) {
          if ((await focused()) === wanted) return;
          await page.keyboard.press('Tab');
        }
        throw new Error(`Tab never reaches ${wanted}`);
      };
      const arrowTo = async (wanted) => {
        const seen = new Map();
        for (let presses = 0; presses < 60; presses++) {
          const now = await focused();
          if (now === wanted) return;
          const tried = seen.get(now) ?? 0;
          seen.set(now, tried + 1);
          await page.keyboard.press(['ArrowRight', 'ArrowDown', 'ArrowLeft', 'ArrowUp'][tried % 4]);
        }
        throw new Error(`the arrow keys never reach ${wanted}`);
      };
      await page.keyboard.press('/');
      assert.match(await focused(), /^Search/);
      await page.keyboard.press('Tab');
      await tabTo('Fit');
      await page.keyboard.press('Tab');
      await arrowTo(BACKEND);
      await page.keyboard.press('Enter');
      await page.getByRole('heading', { name: 'stars/backend' }).waitFor();

      // An arrow from the client to the backend, without a mouse.
      await page.keyboard.press('Escape');
      await page.keyboard.press('/');
      await tabTo('Draw');
      await page.keyboard.press('Enter');
      await tabTo('Fit');
      await page.keyboard.press('Tab');
      await arrowTo(CLIENT);
      await page.keyboard.press('Enter');
      await arrowTo(BACKEND);
      await page.keyboard.press('Enter');
      await page.getByRole('dialog').waitFor();
      await page.keyboard.press('Enter');
      await page.getByText('Selects 1 pod: stars/backend').waitFor();
      await page.locator('.editor .changes li').first().waitFor();
      await tabTo('Save…');
      await page.keyboard.press('Enter');
      await page.getByRole('dialog').waitFor();
      // Cancel has the focus first: Enter alone changes nothing.
      assert.equal(await focused(), 'Cancel');
      await page.keyboard.press('Shift+Tab');
      await page.keyboard.press('Enter');
      await page.getByText('Created stars/backend-from-client.').waitFor();
      assert(existsSync(join(folder, 'stars-backend-from-client.yaml')));
    },
  },

  accessible: {
    async run({ page }) {
      await ready(page);
      const seen = [];
      for (const colorScheme of ['light', 'dark']) {
        for (const width of [1280, 420]) {
          await page.emulateMedia({ colorScheme });
          await page.setViewportSize({ width, height: 800 });
          for (const name of ['Graph', 'Matrix', 'Policies']) {
            await view(page, name);
            await page.waitForTimeout(200);
            for (const fault of await faults(page)) seen.push(`${name}, ${colorScheme}, ${width} pixels: ${fault}`);
          }
        }
      }
      await page.setViewportSize({ width: 1280, height: 800 });
      await view(page, 'Graph');
      await node(page, BACKEND).click();
      await page.getByRole('heading', { name: 'stars/backend' }).waitFor();
      for (const fault of await faults(page)) seen.push(`workload: ${fault}`);
      await page.getByRole('button', { name: 'New policy' }).click();
      await paste(page, DENY.replace('podSelector', 'podSelektor'));
      await page.locator('.faults .error').first().waitFor();
      for (const fault of await faults(page)) seen.push(`editor: ${fault}`);
      assert.deepEqual(seen, []);
      const label = await node(page, BACKEND).getAttribute('aria-label');
      assert.equal(label, 'Deployment stars/backend, 1 pod, ingress isolated, egress open');
    },
  },

  many: {
    async run({ page, shot }) {
      await ready(page);
      await page.getByText('300 pods').waitFor();
      assert.equal(await page.locator('.node.closed').count(), 30, 'namespaces begin closed');
      await shot('many');
      await node(page, 'ns:team-07').click();
      await node(page, 'team-07/Deployment/api').waitFor();
      await shot('many-open');
      await page.getByRole('searchbox').fill('team-07/api');
      assert.equal(await page.locator('.node:not(.dim)').count(), 1);
      await view(page, 'Matrix');
      await page.getByRole('searchbox').fill('team-07');
      assert.equal(await page.locator('.matrix tbody tr').count(), 3);
      await shot('many-matrix');
    },
  },

  empty: {
    async run({ page, shot }) {
      await ready(page);
      await page.getByText('There are no pods yet').waitFor();
      await shot('empty');
      await view(page, 'Matrix');
      await view(page, 'Policies');
      await page.getByRole('button', { name: 'Write the first policy' }).click();
      await editor(page).waitFor();
    },
  },

  /** The program ends while the page is open: the page says so, and shows what it knew. */
  away: {
    refusals: true,
    async run({ page, shot }) {
      await ready(page);
      await node(page, BACKEND).waitFor();
      process.kill(Number(process.env.PAGE_PID));
      await page.getByRole('alert').getByText('does not answer').waitFor();
      assert(await node(page, BACKEND).isVisible());
      await shot('away');
    },
  },

  /** Without the token of this start nothing is shown. */
  stranger: {
    refusals: true,
    async run({ page, url }) {
      await page.goto('about:blank');
      await page.evaluate(() => sessionStorage.clear()).catch(() => {});
      const context = await page.context().browser().newContext();
      const other = await context.newPage();
      await other.goto(url.replace(/#.*/, ''));
      await other.getByRole('alert').getByText('no valid token').waitFor();
      // A page of another origin cannot read anything, even if it knew the address.
      const stolen = await page.evaluate((address) => fetch(address).then((answer) => answer.text(), (error) => `refused: ${error.message}`), `${new URL(url).origin}/api/v1/state`);
      assert.match(stolen, /^refused/);
      await context.close();
    },
  },

  cluster: {
    refusals: true,
    async run({ page }) {
      await ready(page);
      const backend = 'stars/Pod/backend';
      await node(page, backend).waitFor();
      const stored = () => JSON.parse(kubectl(['get', 'networkpolicy', '-n', 'stars', '-o', 'json'])).items;

      await page.getByRole('button', { name: 'New policy' }).click();
      await paste(page, DENY);
      await page.locator('.editor .changes li').first().waitFor();
      assert.deepEqual(stored(), [], 'nothing is applied before it is confirmed');
      await store(page, 'Apply');
      assert.deepEqual(stored().map((one) => one.metadata.name), ['default-deny']);
      await page.waitForFunction(() => document.querySelector('.status').textContent.includes('1 policies'));
      assert(!(await arrows(page)).includes(`client/Pod/client > ${backend}`));

      // Another policy with the same name cannot replace it unseen.
      await page.getByRole('button', { name: 'New policy' }).click();
      await paste(page, DENY);
      await page.getByRole('button', { name: 'Apply…' }).click();
      await page.getByRole('dialog').getByRole('button', { name: 'Apply', exact: true }).click();
      await page.getByRole('alert').getByText('stars/default-deny exists already').waitFor();
      page.once('dialog', (dialog) => dialog.accept());
      await page.getByRole('button', { name: 'Discard' }).click();

      // What somebody else changes appears by itself, and is not overwritten.
      await view(page, 'Policies');
      await page.getByRole('button', { name: 'stars/default-deny' }).click();
      await page.getByRole('heading', { name: 'stars/default-deny' }).waitFor();
      await paste(page, `${DENY}  - Egress\n`);
      await page.locator('.editor .changes li').first().waitFor();
      kubectl(['patch', 'networkpolicy', 'default-deny', '-n', 'stars', '--type=merge', '--field-manager=somebody', '-p', '{"spec":{"podSelector":{"matchLabels":{"role":"backend"}}}}']);
      await page.getByRole('cell', { name: 'role=backend' }).waitFor();
      await page.getByRole('button', { name: 'Apply…' }).click();
      await page.getByRole('dialog').getByRole('button', { name: 'Apply', exact: true }).click();
      await page.getByRole('alert').getByText('was changed meanwhile by somebody').waitFor();
      assert.deepEqual(stored()[0].spec, { podSelector: { matchLabels: { role: 'backend' } }, policyTypes: ['Ingress'] });
      await page.getByRole('button', { name: 'Keep mine' }).click();
      await store(page, 'Apply');
      assert.deepEqual(stored()[0].spec, { podSelector: {}, policyTypes: ['Ingress', 'Egress'] });

      await page.getByRole('button', { name: 'Undo' }).click();
      await page.getByText('Undone: changed stars/default-deny.').waitFor();
      assert.deepEqual(stored()[0].spec, { podSelector: { matchLabels: { role: 'backend' } }, policyTypes: ['Ingress'] });

      // What the API server refuses is told in its words.
      await page.getByRole('button', { name: 'New policy' }).click();
      await paste(page, DENY.replace('stars', 'nowhere'));
      await page.getByText('there is no namespace nowhere').waitFor();
      await page.getByRole('button', { name: 'Apply…' }).click();
      await page.getByRole('dialog').getByRole('button', { name: 'Apply', exact: true }).click();
      await page.getByRole('alert').getByText('"nowhere" not found').waitFor();
      page.once('dialog', (dialog) => dialog.accept());
      await page.getByRole('button', { name: 'Discard' }).click();

      await page.getByRole('button', { name: 'stars/default-deny' }).click();
      await page.getByRole('heading', { name: 'stars/default-deny' }).waitFor();
      await page.getByRole('button', { name: 'Delete…' }).click();
      await page.getByRole('dialog').getByRole('button', { name: 'Delete', exact: true }).click();
      await page.getByText('There is no policy').waitFor();
      assert.deepEqual(stored(), []);

      await view(page, 'Nodes');
      await page.getByText('1 of 2 not ready').waitFor();
      await page.getByRole('row', { name: /n2 not ready .*containers with unready status/ }).waitFor();
    },
  },

  /** A person who may read and not write. */
  reader: {
    refusals: true,
    async run({ page }) {
      await ready(page);
      await page.getByRole('button', { name: 'New policy' }).click();
      await paste(page, DENY);
      await page.locator('.editor .changes li').first().waitFor();
      await page.getByRole('button', { name: 'Apply…' }).click();
      await page.getByRole('dialog').getByRole('button', { name: 'Apply', exact: true }).click();
      await page.getByRole('alert').getByText(/does not let you create stars\/default-deny: .*forbidden/).waitFor();
    },
  },

  /** The page of a daemon. */
  daemon: {
    async run({ page }) {
      await ready(page);
      await page.getByText('read-only').waitFor();
      await node(page, 'shop/Pod/db').waitFor();
      assert.equal(await page.getByRole('button', { name: /Draw|New policy/ }).count(), 0);
      await node(page, 'shop/Pod/db').click();
      await page.locator('.peers').first().getByRole('button').first().click();
      await page.locator('.explanation').waitFor();
      await view(page, 'Policies');
      await page.getByRole('row', { name: /shop\// }).first().waitFor();
      await view(page, 'Nodes');
      await page.getByRole('row', { name: / ready/ }).waitFor();
      await view(page, 'Drops');
      await page.getByText(/^Nothing (was denied|is recorded)/).waitFor();
    },
  },

  stars: {
    async run({ page, shot }) {
      await ready(page);
      await node(page, BACKEND).waitFor();
      await shot('stars-0-open');
      for (const [at, { name, text, allowed }] of STARS.entries()) {
        await page.getByRole('button', { name: 'New policy' }).click();
        await paste(page, text);
        await page.locator('.editor .changes').or(page.locator('.editor .under .muted')).first().waitFor();
        await page.waitForTimeout(500);
        await shot(`stars-${at + 1}-${name}-before`);
        await store(page);
        await page.getByRole('button', { name: 'Close', exact: true }).click();
        await page.getByRole('button', { name: 'Dismiss' }).click();
        await page.waitForFunction((count) => document.querySelector('.status').textContent.includes(`${count} policies`), at + 1);
        await page.waitForTimeout(300);
        const between = (await arrows(page)).filter((pair) => !pair.includes('ip/'));
        if (allowed) assert.deepEqual(between, [...allowed].sort(), name);
        await shot(`stars-${at + 1}-${name}`);
      }
      await view(page, 'Matrix');
      await shot('stars-matrix');
      await view(page, 'Policies');
      await shot('stars-policies');
      await view(page, 'Matrix');
      await page.getByRole('button', { name: /^client\/client to stars\/backend:/ }).click();
      await page.getByText('Denied on 6379/TCP').waitFor();
      await view(page, 'Graph');
      await shot('stars-explain');
      await page.emulateMedia({ colorScheme: 'dark' });
      await shot('stars-dark');
      await page.setViewportSize({ width: 420, height: 800 });
      await shot('stars-narrow');
      assert(readdirSync(process.env.PAGE_FOLDER).length >= STARS.length);
    },
  },
};
