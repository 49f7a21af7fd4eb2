-- The requests of a run of wrk, and what came back, as one line of JSON (benchmarks/load/clients.py).
--
-- REQUESTS is a Lua file that returns {paths = {...}, bodies = {...}, type = ..., count = boolean}.
-- Each request has a path and a body at random. With `count`, different answers are counted.

local given = dofile(os.getenv("REQUESTS"))
local threads, made = {}, {}
answers = {}

function setup(thread)
  table.insert(threads, thread)
end

function init()
  math.randomseed(1)
  local headers = {["Content-Type"] = given.type}
  for k = 0, math.max(#given.paths, #given.bodies) - 1 do
    local path, body = given.paths[k % #given.paths + 1], given.bodies[k % #given.bodies + 1]
    table.insert(made, wrk.format("POST", path, headers, body))
  end
end

function request()
  return made[math.random(#made)]
end

if given.count then
  function response(status, _, body)
    local answer = status .. " " .. body
    answers[answer] = (answers[answer] or 0) + 1
  end
end

function done(summary, latency)
  local errors, different = summary.errors, {}
  for _, thread in ipairs(threads) do
    for answer, times in pairs(thread:get("answers")) do
      table.insert(different, string.format('[%d, %q]', times, answer))
    end
  end
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format(
    '{"requests": %d, "seconds": %f, "failed": %d, "p50_ms": %f, "p95_ms": %f, "p99_ms": %f, "answers": [%s]}',
    summary.requests, summary.duration / 1e6, failed, latency:percentile(50) / 1e3,
    latency:percentile(95) / 1e3, latency:percentile(99) / 1e3, table.concat(different, ", ")
  ))
end
