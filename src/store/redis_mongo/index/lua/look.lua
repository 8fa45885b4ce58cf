-- Whether a vendor has something to do, and when.
-- ARGV: now, streams, sweep_every (ms), epoch (of an index that is to be opened, because the caller has known it for long enough).
-- Gives: epoch, is_open (1), sweep (1: the caller is to sweep for jobs that are missing here), calls leased by all workers, calls ever
-- claimed, when the next call and the next poll are due (ms; -1: none, or not known because the index is not open), whether there is
-- anything for lapsed.lua (1).
local now, streams = tonumber(ARGV[1]), tonumber(ARGV[2])
local name, is_open, sweep_at, claimed = epoch_of_this_run('sweep_at', 'claimed')
if not name then return {''} end
if not is_open and name == ARGV[4] then
  even_when_full()
  redis.call('HSET', state, 'is_open', '1')
  is_open = true
end
local sweep = 0
sweep_at = tonumber(sweep_at or 0)
local every = tonumber(ARGV[3])
-- A time further away was set by a wrong clock.
if is_open and (sweep_at <= now or sweep_at > now + 2 * every) then
  even_when_full()
  redis.call('HSET', state, 'sweep_at', number(now + every))
  sweep = 1
end
local here, _, leased = waiting_in_all(streams)
local calls_leased, some_wait = 0, has_tenants(0, streams - 1)
local upkeep = some_wait
for stream = 0, streams - 1 do
  if stream < 3 then calls_leased = calls_leased + leased[stream] end
  upkeep = upkeep or leased[stream] > 0
end
local next_call, next_poll = next_due(streams, now, here, some_wait)
return {name, is_open and '1' or '0', tostring(sweep), tostring(calls_leased), claimed or '0', next_call, next_poll, upkeep and '1' or '0'}
