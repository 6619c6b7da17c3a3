// Drives the page in a headless Chromium, as a person would.
//
//   node test/run.mjs SCENARIO
//
// PAGE_URL is the address that `towpath ui` printed, PAGE_FOLDER its folder, PAGE_SHOTS a folder for screenshots, if they
// are wanted. Exit status 0: everything is as the scenario says.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { scenarios } from './scenarios.mjs';

const [name] = process.argv.slice(2);
const { PAGE_URL: url, PAGE_FOLDER: folder, PAGE_SHOTS: shots, PAGE_CHROMIUM: executablePath = '/usr/bin/chromium' } = process.env;
const scenario = scenarios[name];
if (!scenario || !url) {
  console.error(`want one of ${Object.keys(scenarios).join(', ')}, and PAGE_URL`);
  process.exit(2);
}

const browser = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-dev-shm-usage'] });
let failed = false;
const complaints = [];
try {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...scenario.context });
  context.setDefaultTimeout(30_000);
  const page = await context.newPage();
  const origin = new URL(url).origin;
  page.on('pageerror', (error) => complaints.push(`an exception: ${error.stack}`));
  // A refused request is logged as an error as well: scenarios that cause one say so.
  page.on('console', (message) => {
    const text = message.text();
    if (message.type() === 'error' && !(scenario.refusals && /Failed to load resource|blocked by CORS policy/.test(text))) complaints.push(`an error: ${text}`);
  });
  page.on('request', (request) => {
    if (new URL(request.url()).origin !== origin) complaints.push(`a request to ${request.url()}`);
  });
  await page.goto(url);
  const shot = async (file) => {
    if (!shots) return;
    mkdirSync(shots, { recursive: true });
    await page.mouse.move(0, 0);
    await page.waitForTimeout(300);
    await page.screenshot({ path: join(shots, `${file}.png`) });
  };
  await scenario.run({ page, folder, shot, url });
  if (complaints.length) throw new Error(`the page caused\n${complaints.join('\n')}`);
  console.log(`${name}: as expected`);
} catch (error) {
  console.error(`${name}: ${error.stack}`);
  if (complaints.length) console.error(complaints.join('\n'));
  failed = true;
} finally {
  await browser.close();
}
process.exit(failed ? 1 : 0);
