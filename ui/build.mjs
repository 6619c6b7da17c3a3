// Builds what the browser loads from src/ into dist/, compressed, as src/page/assets.rs embeds it.
//
//   node build.mjs           writes dist/
//   node build.mjs --check   compares dist/ with what the sources give; exit status 1 if they differ
import { build } from 'esbuild';
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gunzipSync, gzipSync } from 'node:zlib';

const here = dirname(fileURLToPath(import.meta.url));
process.chdir(here);

const bundled = await build({
  absWorkingDir: here,
  entryPoints: { app: 'src/main.jsx' },
  bundle: true,
  minify: true,
  format: 'esm',
  target: 'es2022',
  jsx: 'automatic',
  jsxImportSource: 'preact',
  outdir: 'dist',
  write: false,
  metafile: true,
  legalComments: 'none',
  logLevel: 'warning',
});

// The licences of everything that is in the bundle, and of nothing else.
const packages = new Set(
  Object.keys(bundled.metafile.inputs)
    .map((path) => path.match(/node_modules\/((?:@[^/]+\/)?[^/]+)\//)?.[1])
    .filter(Boolean),
);
const notice = [...packages].sort().map((name) => {
  const folder = join('node_modules', name);
  const { version, license } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
  const file = readdirSync(folder).find((file) => /^licen[cs]e(\.|$)/i.test(file));
  if (!file) throw new Error(`${name} has no licence file`);
  return `${name} ${version} (${license})\n\n${readFileSync(join(folder, file), 'utf8').trim()}\n`;
});
const rule = `\n${'-'.repeat(78)}\n\n`;
const files = {
  'index.html': readFileSync('src/index.html', 'utf8'),
  'icon.svg': readFileSync('src/icon.svg', 'utf8'),
  'NOTICE.txt': ['The page of towpath contains these libraries.\n', ...notice].join(rule),
};
for (const { path, text } of bundled.outputFiles) files[path.split('/').pop()] = text;

// For people who read the repository.
const readable = files['NOTICE.txt'];

const isCheck = process.argv.includes('--check');
mkdirSync('dist', { recursive: true });
let differs = false;
for (const [name, text] of Object.entries(files)) {
  const path = join('dist', `${name}.gz`);
  const before = existsSync(path) ? gunzipSync(readFileSync(path)).toString('utf8') : null;
  if (isCheck) {
    if (before !== text) {
      console.error(`ui/${path} is not what the sources give: run make ui`);
      differs = true;
    }
  } else if (before !== text) {
    writeFileSync(path, gzipSync(text, { level: 9 }));
  }
  if (!isCheck) console.log(`${path}: ${text.length} bytes, compressed ${statSync(path).size}`);
}
if (!isCheck) writeFileSync('NOTICE.txt', readable);
else if (!existsSync('NOTICE.txt') || readFileSync('NOTICE.txt', 'utf8') !== readable) {
  console.error('ui/NOTICE.txt does not list what is bundled: run make ui');
  differs = true;
}
process.exitCode = differs ? 1 : 0;
