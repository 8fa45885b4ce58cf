-- Whether a vendor has something to do, and when.
-- ARGV: now, lines, sweep_every (ms), epoch (the caller has seen this index shut for long enough: it opens).
-- Gives: epoch, is_open (1), sweep (1: the caller is to sweep for jobs that are missing here), calls leased by all workers, calls ever
-- claimed, when the next call and the next poll are due (ms; -1: none; while the index is shut nobody knows).
even_when_full()
local now, lines = tonumber(ARGV[1]), tonumber(ARGV[2])
local name, is_open = epoch_of_this_run()
if not name then return {''} end
if not is_open and name == ARGV[4] then
  redis.call('HSET', state, 'is_open', '1')
  is_open = true
end
local sweep = 0
local sweep_at = tonumber(redis.call('HGET', state, 'sweep_at') or 0)
local every = tonumber(ARGV[3])
-- A time that lies further away was set by a clock that is wrong.
if is_open and (sweep_at <= now or sweep_at > now + 2 * every) then
  redis.call('HSET', state, 'sweep_at', number(now + every))
  sweep = 1
end
local next_at, calls_leased = {-1, -1}, 0
for line = 0, lines - 1 do
  local kind, soonest = line < 3 and 1 or 2, -1
  local here, _, leased = waiting(line)
  if line < 3 then calls_leased = calls_leased + leased end
  if here > 0 or redis.call('ZCARD', of(line, 'due')) > 0 then
    soonest = now
  else
    for _, what in ipairs({'asleep', 'reading'}) do
      local first = redis.call('ZRANGE', of(line, what), 0, 0, 'WITHSCORES')
      local at = tonumber(first[2])
      if at and (soonest == -1 or at < soonest) then soonest = at end
    end
  end
  if soonest ~= -1 and (next_at[kind] == -1 or soonest < next_at[kind]) then next_at[kind] = soonest end
end
return {name, is_open and '1' or '0', tostring(sweep), tostring(calls_leased), redis.call('HGET', state, 'claimed') or '0',
  number(next_at[1]), number(next_at[2])}
