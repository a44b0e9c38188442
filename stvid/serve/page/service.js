// Requests to the service, and its errors in plain words.

const KEY = "stvid-token";
export const token = takeToken();

// The token of ?token=T; it does not stay in the address, where others could read it.
function takeToken() {
  const address = new URL(location.href), given = address.searchParams.get("token");
  if (given === null) return sessionStorage.getItem(KEY);
  sessionStorage.setItem(KEY, given);
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
  return given;
}

export class ServiceError extends Error {}

// Sends a file, or nothing, and returns the finished request.
//   onProgress(share)   while the file is sent, 0 to 1
//   signal              an AbortSignal; the promise is then rejected with an AbortError
export function request(method, path, { file, onProgress, signal } = {}) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest(); // fetch does not tell how much of a file was sent
    xhr.open(method, path);
    xhr.responseType = "blob";
    if (token) xhr.setRequestHeader("Authorization", `Bearer ${token}`);
    xhr.onload = async () => {
      if (xhr.status >= 200 && xhr.status < 300) resolve(xhr);
      else reject(new ServiceError(await detailOf(xhr)));
    };
    xhr.onerror = () => reject(new ServiceError("The service does not answer. Is stvid demo still running?"));
    xhr.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    if (onProgress) xhr.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    if (signal?.aborted) return xhr.onabort();
    signal?.addEventListener("abort", () => xhr.abort(), { once: true });
    const form = file && new FormData();
    form?.append("file", file, file.name || "video");
    xhr.send(form);
  });
}

export async function requestJson(method, path, options) {
  const { response } = await request(method, path, options);
  return JSON.parse(await response.text());
}

async function detailOf(xhr) {
  let detail = null;
  try {
    detail = JSON.parse(await xhr.response.text()).detail;
  } catch {} // not from the service itself, such as a proxy's page
  if (xhr.status === 401) return "The token is missing or wrong. Open the address that stvid demo printed.";
  const wait = xhr.status === 429 ? ` Try again in ${xhr.getResponseHeader("Retry-After") ?? "a few"} seconds.` : "";
  return (typeof detail === "string" && detail ? detail : `The service answered with status ${xhr.status}.`) + wait;
}

export function openSocket(path) {
  const address = new URL(path, location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  if (token) address.searchParams.set("token", token);
  return new WebSocket(address);
}
