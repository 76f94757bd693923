"use strict";
// Volumes of a page opened from disk: scripts with gzip'd int16, inserted when they are shown and then forgotten.

let arrived = null; // what the script that has just run brought

function prditVolume(header, data) {
  arrived = { header, data };
}

let loading = Promise.resolve(); // one after another, or memory would hold all that somebody pages through

/**
 * Loads one volume: {name, shape, spacing, voxels}, voxels as an Int16Array in which x runs fastest.
 * Null where isWanted() says, when its turn comes, that it is not wanted any more.
 */
function loadVolume(script, isWanted = () => true) {
  const volume = loading.then(() => (isWanted() ? insert(script) : null));
  loading = volume.catch(() => {});
  return volume;
}

function insert(script) {
  return new Promise((resolve, reject) => {
    const element = document.createElement("script");
    element.onload = () => {
      const volume = arrived; // of this script: its event follows it before any other script runs
      arrived = null;
      element.remove();
      if (volume) decode(volume).then(resolve, () => reject(new Error(`${script} is damaged`)));
      else reject(new Error(`${script} holds no volume`));
    };
    element.onerror = () => {
      element.remove();
      reject(new Error(`${script} is missing: keep its folder beside this page`));
    };
    element.src = script;
    document.head.append(element);
  });
}

async function decode({ header, data }) {
  const [nx, ny, nz] = header.shape;
  const voxels = new Int16Array(nx * ny * nz);
  const bytes = new Uint8Array(voxels.buffer);
  const unzip = new DecompressionStream("gzip");
  const fed = feed(data, unzip.writable.getWriter());
  let filled = 0;
  for (const reader = unzip.readable.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    bytes.set(value, filled); // throws where there is too much
    filled += value.length;
  }
  await fed;
  if (filled !== bytes.length) throw new Error("too short");
  return { ...header, voxels };
}

/** Hands on base64 in parts, so that it never exists a second time as a whole. */
async function feed(data, writer) {
  const part = 1 << 20; // a multiple of 4 letters
  for (let start = 0; start < data.length; start += part) {
    const text = atob(data.slice(start, start + part));
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    await writer.write(bytes);
  }
  await writer.close();
}
