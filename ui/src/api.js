// Requests to the server. The token comes in the fragment of the address, which browsers send to nobody.
const KEY = 'towpath-token';

const given = location.hash.match(/^#token=([\w-]+)/);
if (given) {
  sessionStorage.setItem(KEY, given[1]);
  history.replaceState(null, '', location.pathname);
}

export class ApiError extends Error {
  constructor(status, body) {
    super(body.error || `the server answered ${status}`);
    this.status = status;
    this.current = body.current;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem(KEY);
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(`api/v1/${path}`, { ...options, headers });
  } catch {
    throw new ApiError(0, { error: 'The program behind this page does not answer: does it still run?' });
  }
  const text = await response.text();
  if (!response.ok) {
    let body = { error: text.trim() };
    try {
      body = JSON.parse(text);
    } catch {
      // Some refusals are plain text.
    }
    throw new ApiError(response.status, body);
  }
  return JSON.parse(text);
}

export const get = (path, query) => ask(query ? `${path}?${new URLSearchParams(query)}` : path);

export const post = (path, body) =>
  ask(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });
