-- A load for wrk: the bodies of a folder, in turn. Prints the figures as one line of JSON.
--
-- BODIES names the folder; CONTENT_TYPE, AUTHORIZATION and X-API-KEY go with each request.
local requests, at = {}, 0

function init()
   local headers = { ["Content-Type"] = os.getenv("CONTENT_TYPE") }
   if os.getenv("AUTHORIZATION") then
      headers["Authorization"] = os.getenv("AUTHORIZATION")
   end
   headers["X-API-Key"] = os.getenv("X-API-KEY")
   for name in io.popen('ls "' .. os.getenv("BODIES") .. '"'):lines() do
      local file = io.open(os.getenv("BODIES") .. "/" .. name, "rb")
      requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
      file:close()
   end
   -- Loads start with different bodies.
   math.randomseed(os.time())
   at = math.random(#requests)
end

function request()
   at = at % #requests + 1
   return requests[at]
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "seconds": %.4f, "p50": %.3f, "p99": %.3f, "refused": %d, "broken": %d}\n',
      summary.requests, summary.duration / 1e6,
      latency:percentile(50) / 1000, latency:percentile(99) / 1000,
      errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
