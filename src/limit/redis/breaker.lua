-- The rule of src/limit/breaker.rs, in microseconds, for all processes. A differential test compares both.
--
-- KEYS[1] `<prefix>:{<vendor>}:breaker` is a hash: until (set from when it opens until it closes), probe and probe_until (the one that is
-- out), parts (what ended in each part that still counts: number, ended, failed, ...), wait (how long it opened for the last time), since
-- and why (since when it is not closed, and why it opened last). Without it the breaker is closed, which is safe.
-- ARGV[1]: what is reported and asked, as JSON (`Call` in breaker.rs names the fields).
-- Gives: standing (0 closed, 1 half open, 2 open), for how long it is still open, taken (1: the caller's probe goes out), how long ago it was
-- closed last (-1: it is closed), why it opened.

local call = cjson.decode(ARGV[1])
local now = clock(call.now)
local kept = redis.call('HMGET', KEYS[1], 'until', 'probe', 'probe_until', 'parts', 'wait', 'since', 'why')
-- A clock that was set back must not make a short rest a long one.
local open_until = math.min(tonumber(kept[1] or 0), now + call.longest)
local probe, probe_until = kept[2] or '', math.min(tonumber(kept[3] or 0), now + call.life)
local parts = kept[4] and cmsgpack.unpack(kept[4]) or {}
local wait, since, why = tonumber(kept[5] or 0), math.min(tonumber(kept[6] or 0), now), kept[7] or ''

local CLOSED, HALF_OPEN, OPEN = 0, 1, 2
local function standing()
  if open_until == 0 then return CLOSED end
  return now < open_until and OPEN or HALF_OPEN
end
local before = standing()
local was_open_until = open_until

local function open(first)
  if open_until == 0 then
    wait, since = first, now
  else
    wait = math.min(math.max(wait * 2, call.open), call.longest)
  end
  open_until, parts, why = now + wait, {}, call.why
end

local function report(ended, failed)
  local part = math.floor(now / call.part)
  local counted, all_ended, all_failed = {}, 0, 0
  for i = 1, #parts, 3 do
    if parts[i] > part - call.parts and parts[i] <= part then
      for j = i, i + 2 do counted[#counted + 1] = parts[j] end
      all_ended, all_failed = all_ended + parts[i + 1], all_failed + parts[i + 2]
    end
  end
  local last = #counted - 2
  if last > 0 and counted[last] == part then
    counted[last + 1], counted[last + 2] = counted[last + 1] + ended, counted[last + 2] + failed
  else
    for _, number in ipairs({ part, ended, failed }) do counted[#counted + 1] = number end
  end
  parts, all_ended, all_failed = counted, all_ended + ended, all_failed + failed
  if all_ended >= call.calls and all_failed * 1000000 >= call.failed_share * all_ended then open(call.open) end
end

local taken = 0
if call.ended > 0 and open_until == 0 then report(call.ended, call.failed) end
if call.trips_for and open_until == 0 then open(call.trips_for) end
if call.hurries and open_until > now then open_until = now end
if call.takes and before == HALF_OPEN and (probe == '' or probe_until <= now) then
  probe, probe_until, taken = call.probe, now + call.life, 1
end
if call.probed and probe ~= '' and probe == call.probe then
  probe, probe_until = '', 0
  if call.probed == 'failed' then open(call.open) end
  if call.probed == 'good' then open_until, since, why = 0, 0, '' end
end

if call.ended > 0 or call.takes or call.probed or call.trips_for or call.hurries then
  redis.call('HSET', KEYS[1], 'until', digits(open_until), 'probe', probe, 'probe_until', digits(probe_until),
    'parts', cmsgpack.pack(parts), 'wait', digits(wait), 'since', digits(since), 'why', why)
end
local left = math.max(open_until - now, 0)
if standing() ~= before or open_until ~= was_open_until then
  redis.call('PUBLISH', call.channel, call.vendor .. ' ' .. standing() .. ' ' .. digits(left))
end
return { standing(), left, taken, since > 0 and math.max(now - since, 0) or -1, why }
